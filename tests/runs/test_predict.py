"""Prediction: what is read ahead, what ONNX Runtime answers, and what is refused before an image is read."""

import csv
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from garda.core import files
from garda.core.errors import DataError, Interrupted, RunFolderError
from garda.core.signals import Stopping
from garda.data import volume as volumes
from garda.data.task import Task
from garda.handover import export, format
from garda.handover.load import OTHER, Exported
from garda.handover.onnx import OnnxNetwork
from garda.models import inference
from garda.runs import predict
from garda.training import loop
from garda.training.device import Compute, ComputeSettings
from tests.support import cli, scans, sites
from tests.support.errors import told
from tests.support.scans import TASK
from tests.support.sites import SITES

WAIT = 20.0  # seconds, for what another thread does at once


@pytest.fixture(scope="module")
def run(run_of: Callable[[str], Path]) -> Path:
    return run_of("adabn")  # which has a network for every target


@pytest.fixture(scope="module")
def exported(run: Path) -> Exported:
    return export.read_exported(run)


@pytest.fixture(scope="module")
def traced() -> Callable[[nn.Module, int], OnnxNetwork]:
    """Networks in ONNX Runtime; equal ones are traced once, which takes seconds."""
    made: dict[tuple[bytes, ...], OnnxNetwork] = {}

    def trace(network: nn.Module, channels: int) -> OnnxNetwork:
        weights = tuple(value.numpy().tobytes() for value in network.state_dict().values())
        if weights not in made:
            made[weights] = OnnxNetwork(network, channels)
        return made[weights]

    return trace


@pytest.fixture
def images(pipeline: Path) -> list[Path]:
    return [sites.image(pipeline, 1, number) for number in range(3)]


def dice(ours: Tensor, theirs: Tensor, index: int) -> float:
    mine, yours = ours == index, theirs == index
    return float(2 * (mine & yours).sum() / (mine.sum() + yours.sum()))


def test_results_come_in_order_and_an_error_at_its_turn():
    def divide(number: int) -> float:
        return 1 / number

    with loop.prefetch([1, 2, 4], divide) as results:
        assert list(results) == [1.0, 0.5, 0.25]
    with loop.prefetch([], divide) as results:
        assert list(results) == []
    found = []
    with pytest.raises(ZeroDivisionError), loop.prefetch([1, 0, 2], divide) as results:
        for result in results:
            found.append(result)
    assert found == [1.0]


def test_one_item_and_no_more_is_read_ahead():
    begun = [threading.Event() for _ in range(4)]

    def read_one(index: int) -> int:
        begun[index].set()
        return index

    with loop.prefetch(range(4), read_one) as results:
        for index in results:
            following = begun[index + 1 : index + 2]
            assert all(event.wait(WAIT) for event in following)
            time.sleep(0.05)
            assert not any(event.is_set() for event in begun[index + 2 :])


def test_a_block_that_is_stopped_leaves_nothing_unpacked():
    waiting, folders = threading.Event(), []

    def indices() -> Iterator[int]:
        yield from (0, 1)
        waiting.set()  # the caller goes on to wait for the second
        yield from (2, 3)

    def unpack(index: int) -> int:
        with files.private_temporary_folder() as folder:
            folders.append(folder)
            if index == 1:
                assert waiting.wait(WAIT)
                time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
        return index

    with Stopping().listening(), pytest.raises(Interrupted), loop.prefetch(indices(), unpack) as results:
        assert list(results) == []
    assert len(folders) == 2 and not any(folder.exists() for folder in folders)
    assert not any(thread.name.startswith("reader") for thread in threading.enumerate())


def test_two_threads_that_silence_warnings_are_both_silent():
    inside, left = threading.Event(), threading.Event()

    def read_one(index: int) -> int:
        if index == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                inside.set()
                assert left.wait(WAIT)
                warnings.warn("Mustermann", stacklevel=1)
        return index

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with loop.silenced(), loop.prefetch(range(2), read_one) as results:
            begun = warnings.catch_warnings()
            begun.__enter__()  # this thread's block begins before the reader's and ends within it
            next(results)
            assert inside.wait(WAIT)
            begun.__exit__()
            left.set()
            assert list(results) == [1]
        warnings.warn("heard again", stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["heard again"]


def test_the_next_scan_is_read_while_one_is_segmented(run, images, tmp_path, monkeypatch):
    begun = {image.name: threading.Event() for image in images}
    order = []
    own_read, own_segment = volumes.read_volume, inference.segment

    def read_volume(case, *given, **more):
        begun[case.case].set()
        return own_read(case, *given, **more)

    def segment_volume(network, volume, *given):
        order.append(volume.case)
        following = images[len(order) : len(order) + 1]
        assert all(begun[image.name].wait(WAIT) for image in following)
        return own_segment(network, volume, *given)

    plain = sites.predict(run, images, tmp_path / "plain")
    monkeypatch.setattr(predict, "read_volume", read_volume)
    monkeypatch.setattr(inference, "segment", segment_volume)
    written = sites.predict(run, images, tmp_path / "maps")
    assert order == [image.name for image in images]
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in plain]


def test_volumes_are_those_of_the_written_label_maps(run, images, tmp_path):
    written = sites.predict(run, images, tmp_path / "maps", volumes=tmp_path / "v.csv")
    with (tmp_path / "v.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label_map"] for row in rows[::3]] == [path.name for path in written]
    for path in written:
        stored = nib.load(path)
        size = float(np.prod(stored.header.get_zooms()[:3])) / 1000
        for index, row in enumerate([row for row in rows if row["label_map"] == path.name], 1):
            count = int((np.asarray(stored.dataobj) == index).sum())
            assert int(row["voxels"]) == count and float(row["ml"]) == pytest.approx(count * size, abs=1e-3)
    assert (tmp_path / "v.csv").stat().st_mode & 0o077 == 0
    assert "exists already" in told(
        RunFolderError, sites.predict, run, images, tmp_path / "b", volumes=tmp_path / "v.csv"
    )


def test_a_scan_that_vanishes_costs_no_label_map_before_it(run, images, tmp_path, monkeypatch):
    own = volumes.read_volume

    def read_volume(case, *given, **more):
        if case.case == images[1].name:
            raise DataError(case.where, "cannot be read", "copy it again")
        return own(case, *given, **more)

    out = tmp_path / "maps"
    with monkeypatch.context() as patch:
        patch.setattr(predict, "read_volume", read_volume)
        assert "cannot be read; copy it again" in told(DataError, sites.predict, run, images, out)
    assert {path.name for path in out.iterdir()} == {images[0].name, predict.UNFINISHED}
    assert "exists already" in told(DataError, sites.predict, run, images, out, domain="other")
    first = (out / images[0].name).stat().st_mtime_ns
    assert sites.predict(run, images, out) == [out / image.name for image in images] == sorted(out.iterdir())
    assert (out / images[0].name).stat().st_mtime_ns == first


@pytest.mark.parametrize("changes", [{}, {"fit": "patch", "size": (32, 32), "channels": 3}])
def test_onnx_runtime_segments_as_torch_does_in_float32(changes, exported, tmp_path):
    task = Task.model_validate({**TASK.model_dump(), **changes})
    other = scans.untrained(exported, task)
    compute = Compute(ComputeSettings(accelerator="cpu", precision="32"))
    volumes = [scans.read(file, task) for file in sorted(scans.write_scans(tmp_path / "images").iterdir())]
    scans.centre(other, volumes[0])
    network = OnnxNetwork(other.network, task.channels)
    for volume in volumes:
        ours = inference.segment(compute.prepare(other.network), volume, task, compute)
        theirs = inference.segment(network, volume, task, compute)
        assert ours.unique().tolist() == [0, 1, 2]
        assert all(dice(ours, theirs, index) > 0.995 for index in range(3))
    coarse = Compute(ComputeSettings(accelerator="cpu", precision="bf16"))  # it computes in float32 all the same
    assert torch.equal(inference.segment(network, volume, task, coarse), theirs)
    assert not torch.equal(inference.segment(coarse.prepare(other.network), volume, task, coarse), theirs)


def segmented(monkeypatch: pytest.MonkeyPatch, run: Path, image: Path, out: Path, **how: Any) -> tuple[Tensor, Tensor]:
    """What the network is shown of an image, and what it answers; five steps find no heart, so labels tell nothing."""
    shown = []

    def segment_volume(network, volume, *given):
        with torch.inference_mode():
            shown.append((volume.image, network(volume.image[..., :64, :64])))
        return own(network, volume, *given)

    own = inference.segment
    with monkeypatch.context() as patch:
        patch.setattr(inference, "segment", segment_volume)
        (written,) = sites.predict(run, [image], out, **how)
    assert nib.load(written).shape == nib.load(image).shape
    return shown[0]


def test_the_network_of_the_chosen_domain_runs_in_onnx_runtime(run, images, traced, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "OnnxNetwork", traced)
    answers = {}
    for domain in (SITES[0], SITES[1], OTHER):
        kinds = [
            segmented(monkeypatch, run, images[0], tmp_path / f"{domain}-{onnx}", domain=domain, onnx=onnx)
            for onnx in (False, True)
        ]
        (_, ours), (_, theirs) = kinds
        assert torch.allclose(ours, theirs, atol=1e-4) and not torch.equal(ours, theirs)
        answers[domain] = theirs
    assert torch.equal(answers[SITES[0]], answers[OTHER])
    assert not torch.allclose(answers[SITES[0]], answers[SITES[1]], atol=1e-2)


def test_a_method_that_prepares_its_images_predicts_with_onnx_runtime(run_of, images, traced, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "OnnxNetwork", traced)
    run = run_of("histogram")
    (shown, ours), (other, theirs) = (
        segmented(monkeypatch, run, images[0], tmp_path / str(onnx), onnx=onnx) for onnx in (False, True)
    )
    assert torch.equal(shown, other) and torch.allclose(ours, theirs, atol=1e-4)
    raw, _ = segmented(monkeypatch, run, images[0], tmp_path / "raw", domain=SITES[0])
    assert not torch.equal(shown, raw)


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_without_onnx_runtime_nothing_is_read_or_written(missing, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("garda.handover.onnx.find_spec", lambda name: None if name == missing else name)
    (tmp_path / "broken.nii.gz").write_bytes(b"")
    words = ("predict", run, tmp_path / "broken.nii.gz", tmp_path / "none.nii.gz", "--out", tmp_path / "maps")
    assert cli.garda(*words, "--runtime", "onnx") == 2
    said = capsys.readouterr()
    assert said.err == f'--runtime onnx: needs {missing}; run: pip install "garda[onnx]"\n' and said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["broken.nii.gz"]


def test_the_command_line_takes_a_runtime_and_an_expected_digest(run, images, traced, tmp_path, capsys, monkeypatch):
    package = format.find_stage(run)
    digest = format.package_digest(package)
    words = ("predict", package, images[0], "--domain", SITES[1], "--runtime", "onnx")
    assert cli.garda(*words, "--out", tmp_path / "no", "--expect", "0" * 64) == 2
    what = f"{package}: has the digest {digest}, not the expected one; ask which package it is\n"
    assert capsys.readouterr().err == what and not list(tmp_path.iterdir())
    made: list[int] = []
    monkeypatch.setattr(predict, "OnnxNetwork", lambda *given: made.append(1) or traced(*given))
    assert cli.garda(*words, "--out", tmp_path / "maps", "--expect", digest.upper()) == 0
    assert made == [1] and (tmp_path / "maps" / images[0].name).exists()
    assert cli.garda(*words[:5], "--out", tmp_path / "torch", "--runtime", "torch") == 0
    assert made == [1]


def test_a_folder_that_holds_label_maps_too_is_no_folder_of_images(run, pipeline, tmp_path):
    site = pipeline.parent / "data" / SITES[1]
    elsewhere = tmp_path / "sites"
    for name in ("images", "labels"):
        (elsewhere / "one" / name).mkdir(parents=True)
    for folder, where in ((site, site), (elsewhere, elsewhere / "one")):
        what = f"{folder}: holds label maps too, in {where / 'labels'}; give {where / 'images'}"
        assert told(DataError, sites.predict, run, [folder], tmp_path / "maps") == what
    assert not (tmp_path / "maps").exists()
