"""On a CUDA device: the same networks, runs that resume and repeat, packages that any machine can use."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from garda.core.console import Console
from garda.core.errors import Interrupted
from garda.data import manifest
from garda.data.volume import read_volume
from garda.handover import format, load, verify
from garda.methods.registry import METHODS
from garda.models import inference
from garda.runs import predict
from garda.training.device import Compute, ComputeSettings
from tests.support import sites
from tests.support.fakes import StopAt
from tests.support.sites import SITES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = {"compute": {"accelerator": "cuda"}}


def weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in format.find_stage(run).glob("*.safetensors")}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_the_device(name: str, pipeline: Path, tmp_path: Path):
    for precision in ("bf16", "32"):
        changes = {"compute": {"accelerator": "cuda", "precision": precision}}
        scores = sites.run_tiny(pipeline, tmp_path / precision, method=name, changes=changes)
        assert {score.stage for score in scores} == {0, 1, 2}
        verify.verify(format.find_stage(tmp_path / precision))


def test_a_package_of_a_gpu_answers_alike_on_a_cpu(pipeline: Path, tmp_path: Path):
    sites.run_tiny(pipeline, tmp_path / "run", method="garda", changes=CUDA)
    package = format.find_stage(tmp_path / "run")
    data = pipeline.parent / "data"
    answers = []
    for accelerator in ("cuda", "cpu"):
        learnt = load.load_package(package, {"compute": {"accelerator": accelerator}})
        case = manifest.read_manifest(data / "manifests" / f"{SITES[1]}.csv", learnt.method.task)[0]
        compute = Compute(ComputeSettings(accelerator=accelerator, precision="32"))
        network = compute.prepare(learnt.method.network_for(learnt.knowledge, SITES[1])).eval()
        volume = read_volume(case, learnt.method.task, data, with_label=False)
        answers.append(inference.segment(network, volume, learnt.method.task, compute))
    assert (answers[0] == answers[1]).float().mean() > 0.999


def test_a_label_map_is_written_from_the_device(pipeline: Path, tmp_path: Path):
    sites.run_tiny(pipeline, tmp_path / "run", method="garda", changes=CUDA)
    image = next((pipeline.parent / "data" / SITES[1] / "images").glob("*.nii.gz"))
    with Console() as console:
        (written,) = predict.predict(tmp_path / "run", [image], tmp_path / "maps", console)
    assert np.asarray(nib.load(written).dataobj).max() < 4


@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_deterministic_runs_of_garda_repeat_and_resume_to_the_bit(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    changes = {"compute": {"accelerator": "cuda", "deterministic": True}}
    for name in ("one", "two"):
        sites.run_tiny(pipeline, tmp_path / name, method="garda", changes=changes)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    stop = StopAt(f"1-{SITES[1]}-adapter", 1)
    with pytest.raises(Interrupted):
        sites.run_tiny(pipeline, tmp_path / "cut", stop, stop.stopping, method="garda", changes=changes)
    sites.run_tiny(pipeline, tmp_path / "cut", method="garda", changes=changes)
    assert weights(tmp_path / "cut") == weights(tmp_path / "one")
    torch.use_deterministic_algorithms(False)
