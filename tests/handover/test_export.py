"""A package's network in other programs' hands: MONAI runs the bundle, ONNX Runtime the file."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_net_in_out
from PIL import Image
from scipy import ndimage

from garda import __version__
from garda.core.errors import ConfigError, GardaError, PackageError
from garda.data.task import Intensity, Task
from garda.data.volume import prediction_name, write_label_map
from garda.handover import export, format
from garda.handover.bundle import write_bundle
from garda.handover.export import WRITERS
from garda.handover.load import OTHER, Exported
from garda.models import inference
from garda.training.device import Compute, ComputeSettings
from tests.support import cli, scans, sites
from tests.support.errors import told
from tests.support.scans import OLD, TASK
from tests.support.sites import SITES

REQUIRED = (
    "schema version monai_version pytorch_version numpy_version required_packages_version task description authors "
    "copyright network_data_format changelog"
)
TENSOR = "type format modality num_channels spatial_shape dtype value_range is_patch_data channel_def"
RUNNING = "conv_0.conv_0.adn.N.running_mean"


@pytest.fixture(scope="module")
def run(run_of: Callable[[str], Path]) -> Path:
    return run_of("adabn")  # which keeps something for every target


@pytest.fixture(scope="module")
def exported(run: Path) -> Exported:
    return export.read_exported(run)


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    export.export_network(run, out, "bundle")
    return out


def run_bundle(bundle: Path, images: Path, labels: Path, suffix: str = ".nii.gz") -> None:
    """As ``python -m monai.bundle run``, in this process."""
    folders = {"bundle_root": str(bundle), "dataset_dir": str(images), "output_dir": str(labels), "suffix": suffix}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns that a bundle is code
        workflow = ConfigWorkflow(str(bundle / "configs" / "inference.json"), workflow_type="infer", **folders)
        workflow.initialize()
        assert workflow.check_properties() == []
        workflow.run()


def load(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) if path.suffix == ".png" else np.asarray(nib.load(path).dataobj)


def assert_same_labels(exported: Exported, images: Path, folder: Path, suffix: str = ".nii.gz") -> None:
    """What MONAI makes of the bundle is, voxel by voxel and where it lies, what garda's own segment makes."""
    compute = Compute(ComputeSettings(accelerator="cpu", precision="32"))
    files = sorted(images.iterdir())
    scans.centre(exported, scans.read(files[0], exported.task))
    write_bundle(exported, folder / "bundle")
    run_bundle(folder / "bundle", images, folder / "labels", suffix)
    found = set()
    for file in files:
        volume = scans.read(file, exported.task)
        own = folder / prediction_name(file)
        label = inference.segment(exported.network, volume, exported.task, compute, exported.largest)
        write_label_map(label, volume, own)
        other = folder / "labels" / file.name.replace(suffix, f"_seg{suffix}")
        ours, theirs = load(own), load(other)
        assert (ours != theirs).sum() <= 1e-3 * np.logical_or(ours, theirs).sum(), file.name
        if suffix != ".png":
            assert np.allclose(nib.load(own).affine, nib.load(other).affine)
        found |= set(np.unique(ours))
    assert found == {*range(len(exported.task.classes))}


def test_a_bundle_gives_the_labels_of_the_package(pipeline, exported, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for site in range(3):
        shutil.copy(sites.image(pipeline, site, 3), images)
    assert_same_labels(scans.untrained(exported, exported.task), images, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fit": "patch", "plane": "coronal"},
        {"plane": "sagittal", "spacing_mm": (0.6, 0.8)},
        {"spacing_mm": None, "channels": 3, "intensity": Intensity(percentiles=(2, 90))},
        {"intensity": Intensity(window=(20, 90))},
    ],
)
def test_a_bundle_reads_scans_as_the_task_says(changes, exported, tmp_path):
    task = Task.model_validate({**TASK.model_dump(), **changes})
    assert_same_labels(scans.untrained(exported, task), scans.write_scans(tmp_path / "images"), tmp_path)


@pytest.mark.parametrize("largest", [((1,), (2,)), ((1, 2),)])
def test_a_bundle_keeps_the_largest_piece(largest, exported, tmp_path):
    changed = replace(scans.untrained(exported, TASK), largest=largest)
    assert_same_labels(changed, scans.write_scans(tmp_path / "images"), tmp_path)
    label = load(next((tmp_path / "labels").iterdir()))
    assert all(ndimage.label(np.isin(label, group))[1] == 1 for group in largest)


def test_a_bundle_reads_a_nearly_black_scan(exported, tmp_path):
    (tmp_path / "images").mkdir()
    scan = np.zeros((48, 32, 9), np.int16)
    scan[20:24, 10:12, 4] = [[3, 5]]
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "images" / "a.nii.gz")
    assert_same_labels(scans.untrained(exported, TASK), tmp_path / "images", tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_bundle_reads_pictures(channels, exported, tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.clip(scans.blobs((101, 45, 3), 1) / 10, 0, 255).astype(np.uint8)
    for name, picture in {"colour": pixels, "grey": pixels[..., 0], "deep": pixels[..., 0] * np.uint16(50)}.items():
        Image.fromarray(picture).save(tmp_path / "images" / f"{name}.png")
    task = TASK.model_copy(update={"channels": channels, "fit": "patch"})
    assert_same_labels(scans.untrained(exported, task), tmp_path / "images", tmp_path, ".png")


def test_a_bundle_is_what_the_specification_asks_for(run, exported, bundle):
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    configs = {"configs/metadata.json", "configs/inference.json"}
    assert files == {*configs, "models/model.pt", "docs/README.md", "docs/license.txt", "LICENSE"}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert set(metadata) >= {*REQUIRED.split()}
    inputs, outputs = (metadata["network_data_format"][part] for part in ("inputs", "outputs"))
    assert set(inputs["image"]) == set(outputs["pred"]) == {*TENSOR.split()}
    assert outputs["pred"]["channel_def"] == {str(i): name for i, name in enumerate(exported.task.classes)}
    card = (format.find_stage(run) / "card.md").read_text()
    assert (bundle / "docs" / "README.md").read_text().startswith(card)


def test_monai_needs_no_garda_to_find_a_bundle_s_network(exported, bundle):
    inference, metadata = (str(bundle / "configs" / name) for name in ("inference.json", "metadata.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verify_net_in_out("network_def", meta_file=metadata, config_file=inference)
    assert "garda" not in Path(inference).read_text()
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in exported.network.state_dict().items())


def test_onnx_runtime_is_told_what_the_network_reads_and_gives_its_logits(exported_onnx):
    exported = export.read_exported(OLD / "garda.zip", SITES[1])
    session = onnxruntime.InferenceSession(exported_onnx, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {
        "task": "heart_phantom",
        "domain": SITES[1],
        "package": exported.digest,
        "garda": __version__,
        "channels": "1",
        "classes": json.dumps(exported.task.classes),
        "size": "[64, 64]",
        "spacing_mm": "[2.5, 2.5]",
        "fit": '"crop"',
        "plane": '"axial"',
        "largest": "[]",
        "percentiles": "[0.5, 99.5]",
        "zoom": "1.0",
        "bias_field_correction": "false",
    }
    assert session.get_inputs()[0].shape[1] == 1 and session.get_outputs()[0].shape[1] == 4
    for shape in ((1, 1, 16, 16), (3, 1, 64, 96)):
        image = torch.rand(shape)
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        with torch.no_grad():
            wanted = exported.network(image)
        assert np.abs(logits - wanted.numpy()).max() < 1e-4
        best, second = wanted.topk(2, dim=1).values.unbind(dim=1)
        sure = (best - second).numpy() > 2e-4  # of pixels where two classes are level, rounding decides
        assert sure.mean() > 0.95
        assert (logits.argmax(1) == wanted.argmax(1).numpy())[sure].all()


def test_every_domain_has_its_own_network(run, exported, tmp_path):
    format.pack(format.find_stage(run), tmp_path / "package.zip")
    source, *targets, other = (export.read_exported(tmp_path / "package.zip", name).network for name in (*SITES, OTHER))
    means = [network.get_buffer(RUNNING) for network in (source, *targets)]
    assert not any(torch.equal(one, two) for one, two in combinations(means, 2))
    assert torch.equal(other.get_buffer(RUNNING), means[0])
    assert torch.equal(exported.network.get_buffer(RUNNING), means[-1])


def test_no_patient_no_path_and_no_day_is_exported(pipeline, bundle, exported_onnx):
    private = [b"/tmp", b"/home", b"/work", b".py", b".nii\0", str(pipeline.parent).encode(), str(Path.cwd()).encode()]
    private += [f"{site}_0".encode() for site in SITES]
    files = {path.name: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    for name, contents in {**files, "network.onnx": exported_onnx}.items():
        assert [word for word in private if word in contents] == [], name
        assert not re.search(rb"20\d\d-\d\d-\d\d", contents), name


def test_a_generator_goes_with_a_bundle_that_is_asked_to_hold_it(run, tmp_path):
    package = OLD / "garda.zip"
    export.export_network(package, tmp_path / "plain", "bundle")
    assert not list((tmp_path / "plain").rglob("generator*"))
    assert cli.garda("export", package, "--to", "bundle", "--with-generator", "--out", tmp_path / "both") == 0
    with format.opened(package) as folder:
        held = (tmp_path / "both" / "models" / "generator.safetensors").read_bytes()
        assert held == (folder / "generator.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="--with-generator: 'adabn' has no generator; leave it out"):
        export.export_network(run, tmp_path / "none", "bundle", with_generator=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("form", WRITERS)
def test_a_method_that_prepares_its_images_is_refused(form, run_of, tmp_path):
    with pytest.raises(ConfigError, match=r"^--to: 'histogram' maps a scan's intensities .* use garda predict$"):
        export.export_network(run_of("histogram"), tmp_path / "out", form)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"plane": "acquired"}, "the task slices every scan as it was acquired"),
        ({"intensity": Intensity(bias_field_correction=True)}, "the task corrects bias fields"),
        ({"classes": ("background", "$print(1)")}, "MONAI takes the name '$print(1)' for an expression"),
    ],
)
def test_what_a_bundle_cannot_say_is_refused(change, what, exported, tmp_path):
    task = exported.task.model_copy(update=change)
    with pytest.raises(ConfigError, match=re.escape(f"--to bundle: {what}")):
        write_bundle(replace(exported, task=task), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", Mock(side_effect=OSError(28, "No space left on device")))
    assert "no space left on the device" in told(GardaError, write_bundle, exported, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("garda.handover.onnx.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'^--to onnx: needs onnx and onnxscript; run: pip install "garda\[onnx\]"$'):
        export.export_network(run, tmp_path / "a.onnx", "onnx")


def test_a_changed_package_is_not_exported(run, tmp_path):
    package = Path(shutil.copytree(format.find_stage(run), tmp_path / "package"))
    (package / "card.md").write_text("Another")
    with pytest.raises(PackageError, match=r"card\.md: has been changed"):
        export.export_network(package, tmp_path / "bundle", "bundle")


def test_the_command_line(run, tmp_path, capsys):
    out = f"{tmp_path}/bundle"
    words = ("export", run, "--out", out)
    met = ", ".join((*SITES, OTHER))
    refused = {
        "--to bundle --domain nowhere": f"--domain: 'nowhere' has not been met; use one of {met}",
        f"--domain {SITES[0]}": "--domain: a zip file holds the networks of all domains; leave it out",
        "--with-generator": "--with-generator: a zip file holds the whole package; leave it out",
        "--to onnx --with-generator": "--with-generator: onnx holds one network; leave it out, or use --to bundle",
        "": f"--out: {out} is no name of a zip file; give {out}.zip, or another form with --to",
    }
    for options, line in refused.items():
        assert cli.garda(*words, *options.split()) == 2
        assert capsys.readouterr().err == f"{line}\n"
    assert not list(tmp_path.iterdir())
    assert cli.garda(*words, "--to", "bundle", "--domain", SITES[0]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert cli.garda(*words, "--to", "onnx") == 2
    assert capsys.readouterr().err == f"{out}: exists already; give another name, or remove it\n"
