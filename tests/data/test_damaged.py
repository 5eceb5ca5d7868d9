"""Files that are damaged, too long, or no files at all: read as they were, or refused in one line."""

import gzip
import os
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from garda.core import config, files
from garda.core.errors import DataError, GardaError
from garda.data import readers, volume
from garda.data.manifest import read_manifest
from garda.data.scan import ScanFile
from garda.handover import format
from garda.training.weights import read_weights
from tests.support import mutants
from tests.support.errors import told

TASK = mutants.TASK


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 200), *(pytest.param(seed, 2000, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_a_damaged_file_ends_in_a_value_or_in_one_line(seed, count, tmp_path):
    words = [sys.executable, "-m", "tests.support.mutants", tmp_path, str(seed), str(count)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def stored(path: Path) -> readers.RawImage:
    return readers.read_stored(ScanFile(path, "image", "x.csv:2"))


def refusal(path: Path) -> str:
    message = told(DataError, stored, path)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["b.nii.gz", "e.mha", "g.png"])
def test_no_changed_bit_of_a_file_with_a_check_sum_changes_a_voxel(name, tmp_path):
    mutants.write_samples(tmp_path)
    path, random = tmp_path / name, np.random.default_rng(0)
    whole, content = stored(path).pixels, path.read_bytes()
    start = content.find(b"LOCAL\n") + 6 if name == "e.mha" else 0  # a MetaImage's header has none
    for place in random.integers(8 * start, 8 * len(content), 200):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert np.array_equal(stored(path).pixels, whole)
        except DataError as error:
            assert "\n" not in str(error)


def deeper(whole: bytes) -> bytes:
    """A gzip file whose header tells of 32,767 voxels along each axis."""
    content = gzip.decompress(whole)
    return gzip.compress(content[:42] + b"\xff\x7f" * 3 + content[48:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: whole[:-4], "cannot be read (EOFError)"),
        (lambda whole: whole + whole, "holds more planes than its header says; correct its header"),
        (lambda whole: whole[:-8] + bytes(8), "cannot be read (BadGzipFile)"),
        (lambda whole: gzip.compress(gzip.decompress(whole)[:-2]), "cannot be read (OSError)"),
        (lambda whole: gzip.compress(gzip.decompress(whole) + bytes(336)), "holds more planes"),
        (deeper, "fewer values"),
    ],
)
def test_a_gzip_file_is_read_to_its_end(change, said, tmp_path):
    mutants.write_samples(tmp_path)
    path = tmp_path / "b.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    assert said in refusal(path)
    path.write_bytes(gzip.compress(gzip.decompress(whole) + bytes(100)) + bytes(512))  # padding is no plane
    assert stored(path).pixels.shape == (*mutants.SHAPE, 1)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("d.mha", b"DimSize = 14 12 5", b"DimSize = 14 12 4", "holds more planes than its header says"),
        ("d.mha", b"DimSize = 14 12 5", b"DimSize = 14 12 6", "holds fewer values than its header says; copy"),
        ("f.mhd", b"DimSize = 14 12 5", b"DimSize = 14 9999 99999", "holds fewer values than its header says"),
        ("d.mha", b"ElementSpacing", b"ElementSpacinG", "does not say how large its voxels are; give it its"),
        ("e.mha", b"CompressedDataSize = ", b"CompressedDataSize = 9", "holds fewer values than its header says"),
    ],
)
def test_a_meta_image_holds_what_its_header_says(name, old, new, said, tmp_path):
    mutants.write_samples(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(old, new))
    assert said in refusal(path)


def test_meta_image_data_may_lie_in_a_packed_file_behind_a_header_or_as_text(tmp_path):
    mutants.write_samples(tmp_path)
    whole, raw = stored(tmp_path / "d.mha").pixels, (tmp_path / "f.raw").read_bytes()
    sitk.WriteImage(sitk.ReadImage(tmp_path / "f.mhd"), tmp_path / "packed.mhd", True)
    assert np.array_equal(stored(tmp_path / "packed.mhd").pixels, whole)
    for size in (b"7", b"-1"):
        header = (
            (tmp_path / "f.mhd").read_bytes().replace(b"ElementDataFile", b"HeaderSize = %b\nElementDataFile" % size)
        )
        (tmp_path / "x.mhd").write_bytes(header.replace(b"f.raw", b"x.raw"))
        (tmp_path / "x.raw").write_bytes(b"1234567" + raw)
        assert np.array_equal(stored(tmp_path / "x.mhd").pixels, whole)


TEXTS = "data_type db_name descrip aux_file intent_name"
NUMBERS = "extents session_error dim_info intent_p1 intent_p2 intent_p3 intent_code slice_start slice_end slice_code"
NUMBERS += " slice_duration toffset glmax glmin cal_max cal_min"


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_nothing_but_geometry_of_a_header_reaches_a_label_map(kind, endianness, tmp_path):
    array = np.random.default_rng(0).integers(0, 9, (5, 4, 3, 1)).astype(np.int16)
    plain, full = (kind.header_class(endianness=endianness) for _ in range(2))
    for header in (plain, full):
        header.set_qform(np.diag([-2.0, 1.0, 3.0, 1.0]), 1)
    for name in TEXTS.split():
        if name in full:
            full[name] = b"Erika"
    for name in NUMBERS.split():
        if name in full and name != "dim_info":
            full[name] = 77
    full["pixdim"][4:] = 77
    full.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Erika"))
    written = []
    for name, header in (("plain.nii", plain), ("full.nii", full)):
        image = kind(array, None, header)
        image.header["pixdim"][5:] = header["pixdim"][5:]
        content = bytearray(image.to_bytes())
        (tmp_path / name).write_bytes(content)
        found = mutants.read_image(tmp_path / name)
        volume.write_label_map(torch.ones(3, 4, 5), found, tmp_path / "out.nii")
        written.append((tmp_path / "out.nii").read_bytes())
    assert b"Erika" in content and written[0] == written[1]
    assert np.allclose(nib.load(tmp_path / "out.nii").affine, nib.load(tmp_path / "full.nii").affine)


def special(path: Path, kind: str) -> Path:
    """A pipe that nobody writes to, a socket, or a link to a device that never ends."""
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
        os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    return path


READERS = [
    ("a.nii", stored),
    ("a.nii.gz", stored),
    ("a.png", stored),
    ("a.mha", stored),
    ("a.zip", stored),
    ("a.mhd", lambda path: readers.digest(path)),
    ("task.yaml", config.load_yaml),
    ("a.csv", lambda path: read_manifest(path, TASK)),
    ("plan.json", files.read_json),
    ("w.safetensors", read_weights),
    ("package.zip", lambda path: format.opened(path).__enter__()),
]


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize(("name", "read"), READERS, ids=[name for name, _ in READERS])
def test_a_pipe_socket_or_device_is_refused_at_once(kind, name, read, tmp_path):
    message = told(GardaError, read, special(tmp_path / name, kind))
    assert "\n" not in message and any(
        said in message for said in ("pipe, socket or device", "is no file or folder", "damaged")
    )


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_a_part_of_a_scan_is_no_pipe(kind, tmp_path):
    mutants.write_samples(tmp_path)
    special(tmp_path / "series" / "9.dcm", kind)
    assert "has a part 9.dcm that cannot be read (it is a pipe, socket or device)" in refusal(tmp_path / "series")
    (tmp_path / "f.raw").unlink()
    special(tmp_path / "f.raw", kind)
    assert "pipe, socket or device" in refusal(tmp_path / "f.mhd")
    assert "has a part f.raw that" in told(DataError, readers.digest, tmp_path / "f.mhd")


def test_a_png_of_another_format_or_with_lost_sums_is_refused(tmp_path):
    Image.new("L", (9, 9), 3).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-16] + b"\0" + content[-15:])
    assert "cannot be read" in refusal(tmp_path / "a.png")


def nifti(path: Path, **fields: object) -> Path:
    """A NIfTI file with fields of its header overwritten as no library would write them."""
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([2.0, 2.0, 3.0, 1.0]))
    header = np.frombuffer(image.to_bytes()[:348], nib.Nifti1Header.template_dtype).copy()
    for name, value in fields.items():
        if name == "pixdim":
            header[name][0, : len(value)] = value
        else:
            header[name] = value
    path.write_bytes(header.tobytes() + image.to_bytes()[348:])
    return path


@pytest.mark.parametrize(
    ("fields", "odd"),
    [
        ({"sform_code": 0, "pixdim": (1, 0, 2, 3)}, "pixdim"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": (1, -2, 2, 3)}, "pixdim"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": (1, np.nan, 2, 3)}, "pixdim"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": (5, 2, 2, 3)}, "pixdim"),
        ({"qform_code": 99}, "qform_code"),
        ({"sform_code": -1}, "sform_code"),
        ({"xyzt_units": 7}, "xyzt_units"),
        ({"scl_slope": np.inf}, "scl_slope"),
        ({"xyzt_units": 66}, ""),
        ({"xyzt_units": 56 + 2}, ""),
        ({"pixdim": (1, 0, 0, 0)}, ""),  # the sform counts
        ({"sform_code": 0, "qform_code": 0}, ""),
    ],
)
def test_a_nifti_header_is_not_mended_in_silence(fields, odd, tmp_path):
    path = nifti(tmp_path / "a.nii", **fields)
    if odd:
        assert f"has no valid {odd} in its header; correct the header" in refusal(path)
    else:
        assert np.allclose(np.abs(stored(path).affine @ [1, 1, 1, 0]), [2, 2, 3, 0])


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_colour_that_png_calls_transparent_is_an_alpha_channel(mode, tmp_path):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for name, colour in (("in.png", 5), ("out.png", 99)):
        grey.convert(mode).save(tmp_path / name, transparency=(colour,) * 3 if mode == "RGB" else colour)
    assert "has pixels more transparent than others" in refusal(tmp_path / "in.png")
    if mode != "P":
        assert stored(tmp_path / "out.png").pixels.max() == 63
    else:
        label = readers.read_stored(ScanFile(tmp_path / "in.png", "label", "x.csv:2"), palette=True)
        assert label.pixels.shape == (8, 8, 1, 1)


@pytest.mark.parametrize("format", ["JPEG", "BMP", "GIF"])
def test_a_picture_is_of_the_format_that_its_name_says(format, tmp_path):
    Image.new("L", (9, 9), 3).save(tmp_path / "a.png", format=format)
    assert "is no picture of the format that its name says" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"ElementSpacing = 1", b"ElementSpacing = -1", "does not say how large its voxels are"),
        (b"ElementSpacing = 1", b"ElementSpacing = 0", "does not say how large its voxels are"),
        (b"ElementSpacing", b"ElementToIntensityFunctionSlope = 2\nElementSpacing", "scales its values (2)"),
    ],
)
def test_a_meta_image_is_not_mended_in_silence(old, new, said, tmp_path):
    mutants.write_samples(tmp_path)
    (tmp_path / "d.mha").write_bytes((tmp_path / "d.mha").read_bytes().replace(old, new))
    assert said in refusal(tmp_path / "d.mha")


def test_a_tiff_holds_what_its_header_says(tmp_path):
    Image.new("L", (9, 7), 3).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    assert content.count(b"\x00\x01\x04\x00\x01\x00\x00\x00\x09\x00\x00\x00") == 1  # ImageWidth
    (tmp_path / "a.tif").write_bytes(content.replace(b"\x09\x00\x00\x00", b"\x09\x00\x10\x00", 1))
    assert "holds fewer values than its header says" in refusal(tmp_path / "a.tif")
