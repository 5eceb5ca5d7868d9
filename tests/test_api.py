"""garda in Python: what a package says of itself, and that it segments as the command line does."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import garda
from garda.core.errors import ConfigError, DataError, PackageError
from tests.support import cli, sites
from tests.support.errors import told
from tests.support.scans import OLD
from tests.support.sites import SITES

SPACING = (8.0, 1.5, 1.5)


@pytest.fixture(scope="module")
def package() -> garda.Package:
    return garda.load(OLD / "garda.zip")


@pytest.fixture(scope="module")
def image(pipeline: Path) -> Path:
    return sites.image(pipeline, 1)


def test_a_package_says_what_it_is(package):
    assert package.domains == SITES[:2] and package.classes[0] == "background" and len(package.classes) == 4
    assert package.card.startswith("# tiny") and len(package.digest) == 64


def test_only_a_package_that_is_whole_and_signed_as_asked_is_loaded(package, tmp_path):
    assert garda.load(OLD / "garda.zip", [str(OLD / "site.pub")], package.digest).digest == package.digest
    assert "not the expected one" in told(PackageError, garda.load, OLD / "garda.zip", expect="0" * 64)
    with pytest.raises(PackageError):
        garda.load(tmp_path)
    with pytest.raises(ConfigError):
        garda.load(OLD / "garda.zip", [str(tmp_path / "none.pub")])


def test_a_file_is_segmented_as_the_command_does(package, image, tmp_path):
    assert cli.garda("predict", OLD / "garda.zip", image, "--out", tmp_path) == 0
    found = package.segment(image)
    assert np.array_equal(found.labels, np.asarray(nib.load(tmp_path / image.name).dataobj))
    assert len(np.unique(found.labels)) == 4
    assert found.probabilities.dtype == np.float32 and found.probabilities.shape == (4, *found.labels.shape)
    assert np.array_equal(found.probabilities.argmax(axis=0), found.labels)
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)


def test_an_array_in_the_volumes_axes_is_segmented_as_its_file(package, image):
    oriented = sitk.DICOMOrient(sitk.ReadImage(image), "LPS")
    array, spacing = sitk.GetArrayFromImage(oriented), oriented.GetSpacing()[::-1]
    kept = array.copy()
    found = package.segment(array, spacing=spacing)
    assert np.array_equal(array, kept)
    file = sitk.GetImageFromArray(found.labels.astype(np.uint8))
    file.CopyInformation(oriented)
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(sitk.ReadImage(image).GetDirection())
    back = sitk.GetArrayFromImage(sitk.DICOMOrient(file, code)).T
    assert np.array_equal(back, package.segment(image).labels)


def test_the_domain_decides_which_network_segments(package, image):
    first, last = (package.segment(image, domain=name).probabilities for name in SITES[:2])
    assert np.array_equal(last, package.segment(image).probabilities)
    assert np.abs(first - last).max() > 0.05
    assert "nowhere" in told(ConfigError, package.segment, image, domain="nowhere")


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((2, 80, 80)), "constant"),
        (np.full((2, 80, 80), np.nan), "NaN"),
        (np.random.rand(80, 80), "shape"),
        (np.random.rand(2, 80, 80, 3), "shape"),
    ],
)
def test_an_array_that_is_no_image_is_one_line(array, what, package):
    with pytest.raises(DataError, match=what):
        package.segment(array, spacing=SPACING)
    assert "an array has no spacing; give spacing" in told(ConfigError, package.segment, np.random.rand(2, 80, 80))


def test_the_example_of_the_readme_runs(image, capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    for name, own in (("to_siteC.zip", OLD / "garda.zip"), ("scan.nii.gz", image), ("siteB", SITES[1])):
        assert name in code
        code = code.replace(name, str(own))
    exec(code, names := {})
    assert names["labels"].shape == names["probabilities"].shape[1:]
    assert capsys.readouterr().out.startswith(f"{SITES[:2]} # tiny")


def test_import_garda_waits_with_torch():
    code = "import sys, garda; assert callable(garda.load); print({'torch', 'monai', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_the_notebook_runs_from_top_to_bottom(pipeline, image, tmp_path, monkeypatch):
    given = {"PACKAGE": OLD / "garda.zip", "SCAN": image, "PIPELINE": pipeline, "DATA": pipeline.parent / "data"}
    for name, value in {**given, "OUT": tmp_path / "out", "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(name, str(value))
    cells = json.loads((Path(__file__).parents[1] / "docs" / "start" / "tutorial.ipynb").read_text("utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        assert cell["outputs"] == []
        exec("".join(cell["source"]), names)
    assert names["labels"].shape == names["stored"].shape and set(names["volumes"]) == set(names["package"].classes)
    assert set(names["means"]) == {"source_only", "adabn"}
