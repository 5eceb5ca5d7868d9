"""DICOM series against two readers that know nothing of garda, and series of which slices are missing."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from garda.core.errors import DataError
from garda.data import dicom
from garda.data.scan import LPS_TO_RAS, ScanFile
from tests.support.errors import told
from tests.support.mutants import write_slice


def read(folder):
    return dicom.read_series(ScanFile(folder, "image", "m.csv:2"))


def turned(degrees):
    """Cosines of rows and columns, turned about two axes."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return about_z @ about_x


KINDS = {
    "plain": {},
    "turned": {"degrees": 33},
    "tilted": {"tilt": 1.5},
    "turned and tilted": {"degrees": -20, "tilt": 0.8},
    "downwards": {"step": -4.0},
    "mixed signs": {"signs": True},
    "rescaled": {"RescaleSlope": 2.5, "RescaleIntercept": -1024},
    "rescaled each": {"each": True},
    "12 bits": {"BitsStored": 12, "HighBit": 11},
    "8 bits": {"dtype": np.uint8},
    "odd sides": {"dtype": np.uint8, "shape": (7, 9)},
    "padded": {"PixelPaddingValue": 0, "RescaleIntercept": -1000, "RescaleSlope": 1},
    "RLE": {"syntax": RLELossless},
    "RLE 8 bits": {"syntax": RLELossless, "dtype": np.uint8, "shape": (8, 10)},
    "JPEG-LS": {"syntax": JPEGLSLossless},
    "deflated": {"deflate": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_series_is_what_two_other_readers_say(kind, tmp_path):
    how = {"degrees": 0, "tilt": 0.0, "step": 4.0, "dtype": np.uint16, "shape": (7, 10), **KINDS[kind]}
    more = {name: value for name, value in how.items() if name[0].isupper()} | {"syntax": how.get("syntax", "")}
    turn, random = turned(how["degrees"]), np.random.default_rng(len(kind))
    for index in range(5):
        pixels = random.integers(0, 200, how["shape"]).astype(how["dtype"])
        if how.get("signs") and index % 2:
            pixels = pixels.astype(np.int16) - 100
        if how.get("each"):
            more |= {"RescaleSlope": 1 + index / 4, "RescaleIntercept": -10 * index}
        place = turn @ [3, -7 + how["tilt"] * index, how["step"] * index]
        directions = [f"{value:.9g}" for value in turn[:, :2].T.ravel()]
        name = tmp_path / "s" / f"{index * 3 % 5}.dcm"
        own = {name: value for name, value in more.items() if value != ""}
        own |= {"ImageOrientationPatient": directions, "ImagePositionPatient": [f"{value:.9g}" for value in place]}
        write_slice(name, index, pixels, **own)
        if how.get("deflate"):
            data = pydicom.dcmread(name)
            data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            data.save_as(name)
    found = read(tmp_path / "s")
    affine = LPS_TO_RAS @ found.affine
    for name in sorted((tmp_path / "s").iterdir()):
        data, other = pydicom.dcmread(name), sitk.ReadImage(name)
        index = np.linalg.solve(affine, [*map(float, data.ImagePositionPatient), 1])
        assert np.allclose(index, [0, 0, round(index[2]), 1], atol=1e-4)
        raw = data.pixel_array.astype(float) * float(data.get("RescaleSlope", 1)) + float(
            data.get("RescaleIntercept", 0)
        )
        mine = found.pixels[:, :, round(index[2]), 0].T
        assert np.allclose(mine, raw, atol=1e-3)
        if kind != "rescaled each" or data.RescaleSlope == int(data.RescaleSlope):
            assert np.allclose(mine, sitk.GetArrayFromImage(other)[0], atol=1e-3)
        corner = other.TransformIndexToPhysicalPoint((other.GetWidth() - 1, other.GetHeight() - 1, 0))
        own = affine @ [other.GetWidth() - 1, other.GetHeight() - 1, round(index[2]), 1]
        assert np.allclose(own[:3], corner, atol=1e-3)


def series(folder, numbers, count=12, **more):
    for index in numbers:
        pixels = np.arange(70, dtype=np.uint16).reshape(7, 10) + index
        write_slice(folder / "s" / f"{index}.dcm", index, pixels, **more)
    return folder / "s"


MR = {"SOPClassUID": MRImageStorage}
EVERY_SECOND = range(0, 12, 2)


@pytest.mark.parametrize(
    ("numbers", "more", "said"),
    [
        (EVERY_SECOND, {"SpacingBetweenSlices": 5}, "they lie 10 mm apart, and 5 mm as it says; fetch the others"),
        (EVERY_SECOND, {"SpacingBetweenSlices": 5, "InstanceNumber": 1}, "they lie 10 mm apart, and 5 mm as it says"),
        (EVERY_SECOND, {"SpacingBetweenSlices": -5, **MR}, "they lie 10 mm apart, and 5 mm as it says"),
        (EVERY_SECOND, {}, "they lie 10 mm apart, and 5 mm as it says"),
        (EVERY_SECOND, MR, "they lie 10 mm apart, and 5 mm as it says"),
        (EVERY_SECOND, {"SliceThickness": 10}, "they lie 10 mm apart"),
        (EVERY_SECOND, {"SliceThickness": None, **MR}, "they lie 10 mm apart; fetch"),
        (range(0, 12, 3), {"SliceThickness": 6, **MR}, "they lie 15 mm apart"),
        (range(7), {"ImagesInAcquisition": 12}, "it has 7 of the 12 of its acquisition; fetch the others, or convert"),
        (range(3, 12), {"ImagesInAcquisition": 12, **MR}, "it has 9 of the 12"),
        (range(12), {"ImagesInAcquisition": 12, "SpacingBetweenSlices": 5}, ""),
        (range(12), {"ImagesInAcquisition": 6}, ""),
        (range(12), {"SpacingBetweenSlices": 1, "SliceThickness": 4, **MR}, ""),  # the gap alone
        (EVERY_SECOND, {"SliceThickness": 8, "ImagesInAcquisition": 12, **MR}, ""),  # one echo of two
        (EVERY_SECOND, {"SpacingBetweenSlices": 10, "SliceThickness": 5, **MR}, ""),
        (range(12), {"SliceThickness": 1}, ""),
        (range(12), {"InstanceNumber": None}, ""),
    ],
)
def test_a_series_that_lacks_slices_is_told(numbers, more, said, tmp_path):
    folder = series(tmp_path, numbers, **more)
    if said:
        message = told(DataError, read, folder)
        assert f"image lacks slices: {said}" in message and "\n" not in message
    else:
        assert read(folder).pixels.shape == (10, 7, len(numbers), 1)


def test_enhanced_dicom_is_refused_by_its_name_even_with_one_frame(tmp_path):
    folder = series(tmp_path, [0], SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=1, PixelSpacing=None)
    assert "is enhanced DICOM, with several frames in a file; export" in told(DataError, read, folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"PixelSpacing": [0.8, 0]}, "does not say how large its pixels are (PixelSpacing)"),
        ({"PixelSpacing": [0.8, -1]}, "does not say how large its pixels are (PixelSpacing)"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "rows and columns that are not at right angles; export"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]}, "rows and columns that are not at right angles"),
        ({"ImageOrientationPatient": [0] * 6}, "rows and columns that are not at right angles"),
        ({"BitsStored": 12, "HighBit": 15}, "stores pixels behind a table, or not in their lowest bits"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "stores pixels behind a table, or not in their lowest bits"),
    ],
)
def test_headers_that_libraries_mend_or_pass_over_are_refused(headers, said, tmp_path):
    assert said in told(DataError, read, series(tmp_path, range(3), **headers))
