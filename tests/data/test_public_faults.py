"""Inputs that went wrong in silence elsewhere: each by its right value, or its refusal in one line."""

import itertools
import os
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import voxel_sizes
from PIL import Image

from garda.core import config
from garda.core.errors import ConfigError, DataError
from garda.data import layouts, readers, volume
from garda.data.build_manifest import build_manifest
from garda.data.manifest import Case, read_manifest
from garda.data.scan import ScanFile
from garda.data.task import Task
from garda.evaluation import metrics
from tests.support import cli
from tests.support.errors import told

TASK = "name: t\nclasses: [background, organ, lesion]\nsize: [16, 16]\nlabel:\n  values: {%s}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TASK % "5: 2, 5: 1", "line 5: the key 5 comes twice"),
        (TASK % "5: 2" + "name: u\n", "line 6: the key 'name' comes twice"),
        ("a: {b: {c: 1, d: 2, c: 3}}\n", "line 1: the key 'c' comes twice"),
        ("base: &b {x: 1}\n? [1, 2]\n: 3\n? [1, 2]\n: 4\n", "line 4: the key [1, 2] comes twice"),
    ],
)
def test_a_key_that_comes_twice_is_refused_with_its_line(text, said, tmp_path):
    (tmp_path / "task.yaml").write_text(text)
    message = told(ConfigError, config.load_yaml, tmp_path / "task.yaml")
    assert said in message and "\n" not in message


def test_a_key_that_is_merged_may_be_written_over(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  x: 3\n")
    assert config.load_yaml(tmp_path / "a.yaml")["other"] == {"x": 3, "y": 2}
    (tmp_path / "task.yaml").write_text(TASK % "5: 2, 6: 1")
    assert config.load(Task, tmp_path / "task.yaml").label.values == {5: 2, 6: 1}


def test_more_classes_than_a_label_map_holds_are_refused(tmp_path):
    (tmp_path / "task.yaml").write_text(f"name: t\nsize: [16, 16]\nclasses: {[f'c{n}' for n in range(260)]}\n")
    assert "at most 256 items" in told(ConfigError, config.load, Task, tmp_path / "task.yaml")


def stored(path: Path) -> np.ndarray:
    """A picture's (rows, columns) or (rows, columns, channels)."""
    return readers.read_stored(ScanFile(path, "image", "x.csv:2")).pixels[:, :, 0].swapaxes(0, 1).squeeze()


def refusal(path: Path) -> str:
    message = told(DataError, readers.read_stored, ScanFile(path, "image", "x.csv:2"))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_tiff_is_read_in_stored_order_whatever_its_orientation_says(tag, tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for name, array in (("grey.tif", pixels), ("colour.tif", np.dstack([pixels, pixels + 1, pixels + 2]))):
        Image.fromarray(array).save(tmp_path / name, tiffinfo={274: tag})
        assert np.array_equal(stored(tmp_path / name), array)


def deep_png(colour: int, channels: int) -> bytes:
    """16 bits a channel, which Pillow does not write in colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head, rows = struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0), (b"\0" + bytes(range(8)) * channels) * 4
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_not_cut_to_8(colour, channels, tmp_path):
    (tmp_path / "a.png").write_bytes(deep_png(colour, channels))
    assert "has 16 bits a colour, which would be cut to 8; store 8 bits" in refusal(tmp_path / "a.png")
    (tmp_path / "grey.png").write_bytes(deep_png(0, 1))
    assert stored(tmp_path / "grey.png").max() == 0x607


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_pixels_of_several_transparencies_are_refused_and_those_of_one_are_read(mode, tmp_path):
    for alpha in (255, 254):
        image = Image.new(mode, (4, 3), (7,) * (len(mode) - 1) + (255,))
        image.putpixel((1, 1), (9,) * (len(mode) - 1) + (alpha,))
        image.save(tmp_path / f"{alpha}.png")
    assert stored(tmp_path / "255.png").max() == 9
    assert "has pixels more transparent than others; store it without an alpha channel" in refusal(tmp_path / "254.png")


def test_planes_behind_one_directory_are_counted(tmp_path):
    Image.new("L", (4, 3), 1).save(tmp_path / "a.tif", tiffinfo={270: "ImageJ=1.53t\nimages=6\nslices=6\n"})
    assert "holds 6 pages" in refusal(tmp_path / "a.tif")
    Image.new("L", (4, 3), 1).save(tmp_path / "b.tif", tiffinfo={270: "ImageJ=1.53t\nimages=1\n"})
    assert stored(tmp_path / "b.tif").shape == (3, 4)


def test_a_decoders_error_says_what_failed(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    whole = (tmp_path / "large.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    assert "is no picture of the format that its name says" in refusal(tmp_path / "text.png")
    assert "cannot be read" in refusal(tmp_path / "short.png") and "truncated" in refusal(tmp_path / "short.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "has more than 2000 pixels; cut it into tiles" in refusal(tmp_path / "large.png")


GRID = Task(name="t", classes=("background", "organ"), size=(16, 16), spacing_mm=(1.0, 1.0))


def nifti(path: Path, affine: np.ndarray, unit: str = "mm", shape: tuple[int, int, int] = (20, 16, 2)) -> Case:
    image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return Case("c", "p", "test", path.name, (), (), "x.csv:2")


@pytest.mark.parametrize(("unit", "step"), [("mm", 1.0), ("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_a_headers_unit_counts_and_label_maps_keep_it(unit, step, tmp_path):
    case = nifti(tmp_path / "a.nii", np.diag([2 * step, step, 5 * step, 1]), unit)
    found = volume.read_volume(case, GRID, tmp_path, with_label=False)
    assert found.spacing_mm == pytest.approx((5.0, 1.0, 2.0))
    volume.write_label_map(torch.ones(2, 16, 20, dtype=torch.long), found, tmp_path / "l.nii")
    image, label = nib.load(tmp_path / "a.nii"), nib.load(tmp_path / "l.nii")
    assert np.allclose(image.affine, label.affine) and label.header.get_xyzt_units()[0] == unit


@pytest.mark.parametrize(("spacing", "said"), [(1e-3, "would be 1 x 1 pixels"), (1e5, "GiB of")])
def test_a_spacing_that_cannot_be_meant_is_refused_before_anything_is_resampled(spacing, said, tmp_path):
    case = nifti(tmp_path / "a.nii", np.diag([spacing, spacing, 5.0, 1]))
    message = told(DataError, volume.read_volume, case, GRID, tmp_path, with_label=False)
    assert (
        f"has pixels of {spacing:g} x {spacing:g} mm" in message and said in message and "correct its header" in message
    )


def sheared(degrees: float) -> np.ndarray:
    """A tilted gantry: slices of 5 mm whose rows of 1 mm run along a slope."""
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[1, 2] = 5 * np.tan(np.radians(degrees))
    return affine


@pytest.mark.parametrize("degrees", [30, -30, 0])
def test_distances_on_a_sheared_grid_are_those_in_space(degrees):
    label, predicted = torch.zeros(8, 12, 12, dtype=torch.long), torch.zeros(8, 12, 12, dtype=torch.long)
    label[2, 5, 5], predicted[4, 7, 5] = 1, 1  # slices, rows, columns
    matrix = sheared(degrees)[:, [2, 1, 0, 3]]
    spacing = tuple(float(length) for length in voxel_sizes(matrix))
    ((_, _, found, unit),) = metrics.score_volume(predicted, label, None, spacing, ("b", "o"), matrix)
    assert unit == "mm" and found == pytest.approx(np.linalg.norm(matrix[:3, :3] @ [2, 2, 0]), abs=1e-4)
    ((_, _, empty, _),) = metrics.score_volume(predicted * 0, label, None, spacing, ("b", "o"), matrix)
    corners = [matrix[:3, :3] @ (np.array(signs) * (8, 12, 12)) for signs in itertools.product((1, -1), repeat=3)]
    assert empty == pytest.approx(max(np.linalg.norm(corner) for corner in corners))


HEADER = "case,patient,split,image,label,image_sha256,image_bytes,label_sha256,label_bytes\n"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("a,Jos\u00e9,train,a.nii,", "b,Jose\u0301,test,b.nii,"), "patient 'Jose\u0301' is also spelt 'Jos\u00e9'"),
        (("a,P1,train,a.nii,", "b,p1,train,b.nii,"), "patient 'p1' is also spelt 'P1'; spell it alike everywhere"),
        (("Scan,p,train,a.nii,", "scan,p,train,b.nii,"), "case 'scan' is also spelt 'Scan'"),
        (("a,p,train,a.nii,,aa,1", "b,q,test,b.nii,,aa,1"), "image 'b.nii' is the same file as 'a.nii', which stands"),
    ],
)
def test_one_patient_or_file_under_two_names_is_refused(rows, said, tmp_path):
    lines = [row + "," * (8 - row.count(",")) for row in rows]
    (tmp_path / "a.csv").write_text(HEADER + "\n".join(lines) + "\n")
    message = told(DataError, read_manifest, tmp_path / "a.csv", GRID)
    assert said in message and message.startswith(f"{tmp_path / 'a.csv'}:3: ")


def scans(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), number).save(folder / name)
    return folder


def test_a_label_is_that_of_the_image_whose_name_it_bears(tmp_path):
    folder = scans(tmp_path / "site", "images/visit_1.png", "images/visit_2.png", "labels/visit_1_2.png")
    scans(folder, "labels/visit_2_seg.png")
    found = {case.case: case.labels for case in build_manifest(folder, tmp_path)}
    assert found == {"visit_1": (), "visit_2": ("site/labels/visit_2_seg.png",)}


def test_linked_folders_are_entered_and_what_is_left_out_is_told(tmp_path, capsys):
    folder = scans(tmp_path / "site", "images/p1/a.png", "elsewhere/b.png", "labels/lost.png")
    for number in range(9):
        (folder / "images" / f"note{number}.txt").touch()
    (folder / "images" / "p2").symlink_to(folder / "elsewhere")
    (folder / "images" / "p1" / "up").symlink_to(folder / "images")
    (folder / "images" / "p3.png").symlink_to("/nowhere.png")
    words = ("manifest", folder / "images" / "..", "--data", tmp_path, "--out", tmp_path / "a.csv")
    assert cli.garda(*words, "--strict") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "12 files would be left out, such as elsewhere/b.png belongs to no case" in said
    assert not (tmp_path / "a.csv").exists()
    assert cli.garda(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "left out: images/note0.txt is of no known format" in lines and lines[-2] == "and 2 more"
    assert lines[-1].endswith("2 cases of 2 patients")
    left = layouts.find_left(folder, [folder / "images/p1/a.png", folder / "images/p2/b.png"])
    assert "images/p3.png leads nowhere" in left and "labels/lost.png belongs to no case" in left


def test_a_name_that_is_no_utf8_is_one_line(tmp_path):
    folder = scans(tmp_path / "site", "images/a.png")
    os.rename(folder / "images" / "a.png", folder / "images" / os.fsdecode(b"M\xfcller.png"))
    assert told(DataError, build_manifest, folder, tmp_path).endswith(
        "M\\udcfcller.png: has a name that is no UTF-8; rename it"
    )


@pytest.mark.parametrize("degrees", [0, 45, 135])
def test_a_label_is_turned_as_its_image_is_even_where_axes_tie(degrees, tmp_path):
    """The image has sform and qform, its label the qform alone, which holds floats of another rounding."""
    turn, angle = np.eye(4), np.radians(degrees)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([-1.4, -1.4, 8.0, 1.0])
    array = np.arange(16 * 16 * 4).reshape(16, 16, 4)
    for name, pixels, code in (("image", array, 1), ("label", array % 2, 0)):
        image = nib.Nifti1Image(pixels.astype(np.int16), affine)
        image.header.set_qform(affine, 1)
        image.header.set_sform(affine, code)
        (tmp_path / f"{name}.nii").write_bytes(nib.Nifti1Image(image.dataobj, None, image.header).to_bytes())
    case = Case("c", "p", "test", "image.nii", ("label.nii",), (), "x.csv:2")
    found = volume.read_volume(case, GRID, tmp_path, with_label=True)
    assert found.label.shape == found.image[:, 0].shape
    volume.write_label_map(found.label, found, tmp_path / "back.nii")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "back.nii").dataobj), array % 2)


@pytest.mark.parametrize(("size", "shift", "fits"), [(4e-4, 1e-3, False), (10.0, 0.3, True), (1.0, 0.3, False)])
def test_a_label_may_lie_a_share_of_a_voxel_away(size, shift, fits, tmp_path):
    task = GRID.model_copy(update={"spacing_mm": None})
    nifti(tmp_path / "a.nii", np.diag([size, size, size, 1.0]))
    moved = np.diag([size, size, size, 1.0])
    moved[0, 3] = shift
    image = nib.Nifti1Image(np.zeros((20, 16, 2), np.uint8), moved)
    nib.save(image, tmp_path / "l.nii")
    case = Case("c", "p", "test", "a.nii", ("l.nii",), (), "x.csv:2")
    if fits:
        assert volume.read_volume(case, task, tmp_path, with_label=True).label is not None
    else:
        assert "voxels away from its image" in told(
            DataError, volume.read_volume, case, task, tmp_path, with_label=True
        )
