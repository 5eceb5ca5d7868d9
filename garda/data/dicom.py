"""DICOM series: their files in order, geometry, pixels, and what their headers promise.

Of a header only the geometry goes further than this file; what a DICOM-SEG must repeat of its source is
:mod:`garda.data.dicom_seg`'s.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from garda.core import files
from garda.data import dicom_zip, scan
from garda.data.dicom_zip import DIRECTORY
from garda.data.scan import LPS_TO_RAS, RawImage, ScanFile

if TYPE_CHECKING:
    from pydicom import Dataset

UNEVEN = 0.1  # of the slice distance: what differs more is a missing slice, what differs less is rounding
SAME = 1e-3  # of a direction cosine or mm: what differs less is rounding
ANGLE = 0.02  # how far products of direction cosines may be from 0 and 1
TILT = 0.02  # of the slice distance: slices that are moved sideways by less are not sheared
# What is read of a header: whose it is, how its pixels are stored, where they lie.
OWNER = ("SOPClassUID", "ModalityLUTSequence", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientIdentityRemoved")
SHAPE = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "PhotometricInterpretation")
VALUES = ("BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept")  # what a pixel means
PLACE = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
COUNTS = ("InstanceNumber", "ImagesInAcquisition", "AcquisitionNumber")
CT = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.2")  # whose slices no echoes lie between
GONE = 1.9  # slice distances from one slice to the next: at least one is missing between
BARE = re.compile(
    rb"[\x02\x08]\x00[\x00-\x20]\x00(UL|UI|CS|DA|TM|SH|LO|[\x01-\xff]\x00\x00\x00)", re.DOTALL
)  # a data set
WHOLE = "fetch the others, or convert what is there to NIfTI"
APART = "give every stack of parallel slices a folder of its own"


@dataclass(frozen=True)
class Series:
    """One stack of parallel slices.

    Attributes:
        files: in the order of the slices, along the normal of rows and columns (PS3.3, section C.7.6.2.1.1).
        size: rows and columns of a slice.
        affine: (4, 4), (column, row, slice, 1) to RAS coordinates in mm; sheared where the gantry was tilted.
        sheared: whether it is.
        uneven: whether slices say each for itself what their pixels mean, and so have no whole numbers in common.
        identity_removed: whether every header says PatientIdentityRemoved=YES (0012,0062).
    """

    files: tuple[str, ...]
    size: tuple[int, int]
    affine: np.ndarray
    sheared: bool
    uneven: bool
    identity_removed: bool


def is_dicom(path: Path) -> bool:
    """Whether a scan is read as DICOM: a folder, or something in a zip file.

    >>> is_dicom(Path("study.zip/T1")), is_dicom(Path("scan.nii.gz"))
    (True, False)
    """
    return path.is_dir() or scan.split_archive(path) is not None


def is_series(folder: Path) -> bool:
    """Whether a folder holds a DICOM file.

    Raises:
        OSError: the folder or a file in it cannot be read.
    """
    return any(file.is_file() and _is_dicom_file(file) for file in folder.iterdir() if file.name != DIRECTORY)


def read_series(file: ScanFile) -> RawImage:
    """The one series of a folder or a zipped study, its pixels (X, Y, Z, C); errors as :func:`series`."""
    import SimpleITK as sitk

    with series(file) as found:
        sitk.ProcessObject.SetGlobalWarningDisplay(False)  # geometry has been looked at in :func:`series`
        kind = sitk.sitkFloat32 if found.uneven else sitk.sitkUnknown
        # the library reads a whole series as its first file says
        groups = [[name] for name in found.files] if found.uneven else [[*found.files]]
        parts = [sitk.GetArrayFromImage(sitk.ReadImage(group, kind, "GDCMImageIO")) for group in groups]
        pixels = np.concatenate(parts)
    return scan.with_affine(pixels.reshape(len(found.files), *found.size, -1), found.affine, found.sheared)


@contextmanager
def series(file: ScanFile) -> Iterator[Series]:
    """The one series of a folder or a zipped study.

    A zipped study is unpacked into a private folder that goes with the block, under names of its own: what a zip file
    calls its members never becomes a path.

    Raises:
        DataError: there is none or more than one, a file cannot be read, slices are no stack of one size and
            orientation at even distances, or the zip file cannot be unpacked.
    """
    packed = scan.split_archive(file.path)
    if packed is None:
        yield _look(file, file.path)
    else:
        with files.private_temporary_folder() as folder:
            dicom_zip.unpack(file, *packed, folder)
            yield _look(file, folder)


def _look(file: ScanFile, folder: Path) -> Series:
    """A series by its headers, all of them: what a library drops in silence would be missing in the volume."""
    found = {str(path): _read_header(file, path) for path in dicom_files(file, folder)}
    slices = {path: header for path, header in found.items() if "Rows" in header}  # no reports or presentation states
    if not slices:
        raise file.error("is a folder without a DICOM series", "give an image file, or a folder with one series")
    if (count := len({header.get("SeriesInstanceUID") for header in slices.values()})) > 1:
        raise file.error(f"holds {count} DICOM series", "give every series a folder of its own")
    kinds = [header.get("SOPClassUID", "") for header in slices.values()]
    enhanced = any(getattr(kind, "name", "").startswith(("Enhanced", "Legacy Converted")) for kind in kinds)
    if enhanced or any(int(header.get("NumberOfFrames") or 1) > 1 for header in slices.values()):
        raise file.error(
            "is enhanced DICOM, with several frames in a file", "export the series with a file for each slice"
        )
    try:
        return _stack(file, [*slices], [*slices.values()])
    except (TypeError, ValueError):  # a value of the header that is no number
        raise file.error("has a DICOM header with a damaged geometry", "export the series again") from None


def _stack(file: ScanFile, paths: Sequence[str], headers: Sequence[Dataset]) -> Series:
    if len({(header.Rows, header.Columns, header.get("FrameOfReferenceUID")) for header in headers}) > 1:
        raise file.error("has slices of several sizes or frames of reference", APART)
    if len({(header.get("SamplesPerPixel"), header.get("PhotometricInterpretation")) for header in headers}) > 1:
        raise file.error("has slices of several photometric interpretations", "export the series again, as one kind")
    placed = all("ImagePositionPatient" in header and "ImageOrientationPatient" in header for header in headers)
    if not placed and len(paths) > 1:
        raise file.error("has slices whose DICOM headers do not say where they lie", "convert the series to NIfTI")
    if not all(header.get("PixelSpacing") for header in headers):
        raise file.error("does not say how large its pixels are (no PixelSpacing)", "convert it with its true spacing")
    spacings = _numbers(headers, "PixelSpacing", (1.0, 1.0))
    if not spacings.min() > 0:
        raise file.error("does not say how large its pixels are (PixelSpacing)", "convert it with its true spacing")
    if any("ModalityLUTSequence" in header or _high_bit(header) for header in headers):
        raise file.error("stores pixels behind a table, or not in their lowest bits", "export the series again")
    turns = _numbers(headers, "ImageOrientationPatient", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    if np.ptp(spacings, axis=0).max() > SAME or np.ptp(turns, axis=0).max() > SAME:
        raise file.error("has slices of several orientations or pixel sizes", APART)
    along_row, along_column = turns[0, :3], turns[0, 3:]
    if np.abs(turns[0].reshape(2, 3) @ turns[0].reshape(2, 3).T - np.eye(2)).max() > ANGLE:
        raise file.error("has rows and columns that are not at right angles", "export the series again")
    normal = np.cross(along_row, along_column)
    unordered = _numbers(headers, "ImagePositionPatient", (0.0, 0.0, 0.0))
    order = np.argsort(unordered @ normal, kind="stable")
    places = unordered[order]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * spacings[0, 1], along_column * spacings[0, 0]
    affine[:3, 2], affine[:3, 3] = _step(file, places, normal, headers[0]), places[0]
    if len(paths) > 1:
        _refuse_gaps(file, [headers[index] for index in order], float(affine[:3, 2] @ normal))
    sideways = affine[:3, 2] - affine[:3, 2] @ normal * normal
    meanings = {tuple(str(header.get(name)) for name in VALUES) for header in headers}
    return Series(
        tuple(paths[index] for index in order),
        (int(headers[0].Rows), int(headers[0].Columns)),
        LPS_TO_RAS @ affine,
        bool(np.linalg.norm(sideways) > TILT * np.linalg.norm(affine[:3, 2])),
        len(meanings) > 1,
        all(str(header.get("PatientIdentityRemoved", "")).strip() == "YES" for header in headers),
    )


def _step(file: ScanFile, places: np.ndarray, normal: np.ndarray, header: Dataset) -> np.ndarray:
    """From one slice to the next, in mm; of a single one, its thickness along the normal."""
    if len(places) == 1:
        return normal * float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0)
    steps = np.diff(places, axis=0)
    if (steps @ normal).min() < SAME:
        raise file.error("has several slices at one place", "give every phase or echo a folder of its own")
    lengths = np.linalg.norm(steps, axis=1)
    mean = (places[-1] - places[0]) / len(steps)
    if lengths.max() - lengths.min() > UNEVEN * lengths.min():
        raise file.error("has slices at uneven distances", "add the missing slices, or take the surplus ones out")
    if np.linalg.norm(steps - mean, axis=1).max() > UNEVEN * np.linalg.norm(mean):
        raise file.error("has slices that lie on no line", APART)
    return mean


def _refuse_gaps(file: ScanFile, headers: Sequence[Dataset], step: float) -> None:
    """Refuse a series of which slices are missing at even distances, or at its ends, as its headers tell.

    Every echo or phase in a folder of its own leaves even gaps between the numbers too, and a whole multiple of its
    slices in the acquisition: so numbers alone count for CT alone, else the slices' own distance is asked.

    Args:
        file: the series.
        headers: of its slices, in their order.
        step: mm from one slice to the next.
    """
    between, thick = (abs(float(headers[0].get(name) or 0)) for name in ("SpacingBetweenSlices", "SliceThickness"))
    of_gaps = between < thick and abs(between + thick - step) <= UNEVEN * step  # some scanners give the gap alone
    numbers = [int(header.get("InstanceNumber") or 0) for header in headers]
    apart = {abs(after - before) for before, after in itertools.pairwise(numbers)}
    jumps = len(apart) == 1 and min(apart) > 1
    distance = between or thick
    far = not of_gaps and step > GONE * distance if distance else True
    if (between and far) or (jumps and (far or str(headers[0].get("SOPClassUID")) in CT)):
        what = f"lacks slices: they lie {step:g} mm apart" + (f", and {distance:g} mm as it says" if distance else "")
        raise file.error(what, WHOLE)
    totals = {(int(h.get("ImagesInAcquisition") or 0), str(h.get("AcquisitionNumber"))) for h in headers}
    total = max(total for total, _ in totals)
    if len(totals) == 1 and total > len(headers) and total % len(headers):
        raise file.error(f"lacks slices: it has {len(headers)} of the {total} of its acquisition", WHOLE)


def _high_bit(header: Dataset) -> bool:
    """Whether pixels are stored above the lowest bits."""
    return "HighBit" in header and "BitsStored" in header and header.HighBit != header.BitsStored - 1


def _numbers(headers: Sequence[Dataset], name: str, default: Sequence[float]) -> np.ndarray:
    return np.array([[float(value) for value in header.get(name) or default] for header in headers])


def dicom_files(file: ScanFile, folder: Path) -> list[Path]:
    """Every file of a folder that begins as DICOM says; one that cannot be opened is told."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == DIRECTORY:
            continue
        if path.is_symlink() and not path.exists():
            raise file.error(f"has a part {path.name} that leads nowhere", "fetch it, or take it out")
        try:
            if not path.is_dir():
                files.refuse_special(path)
            if path.is_file() and _is_dicom_file(path):
                found.append(path)
            elif path.is_file() and BARE.match(path.read_bytes()[:8]):
                raise file.error(f"has a part {path.name} without the preamble of DICOM", "write it as a DICOM file")
        except OSError as error:
            what, remedy = scan.cannot_read(error)
            raise file.error(f"has a part {path.name} that {what}", remedy) from None
    return found


def _read_header(file: ScanFile, path: Path) -> Dataset:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote what is in a header
        try:
            with path.open("rb") as opened:
                header = pydicom.dcmread(
                    opened, stop_before_pixels=True, specific_tags=[*OWNER, *SHAPE, *VALUES, *PLACE, *COUNTS]
                )
                header.decode()
                whole = _is_whole(header, path.stat().st_size - opened.tell())
        except Exception as error:  # pydicom meets damaged bytes with many kinds
            what = f"has a part that cannot be read ({type(error).__name__})"
            raise file.error(what, "copy it again, it may be truncated") from None
    if not whole:
        raise file.error("has a part that ends too early", "copy it again, it may be truncated")
    return header


def _is_whole(header: Dataset, left: int) -> bool:
    """Whether a file has an end: an image its pixels, ``left`` bytes of which follow the header.

    Libraries fill up what is missing of plain pixels, or pass over the file. Compressed ones are left to the decoder.
    """
    if "Rows" not in header:
        return "Image Storage" not in header.SOPClassUID.name
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_compressed or syntax.is_deflated:  # the latter has been unpacked to its end
        return left > 0 or syntax.is_deflated
    pixels = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel", 1))
    return left >= pixels * int(header.BitsAllocated) // 8


def _is_dicom_file(file: Path) -> bool:
    with file.open("rb") as opened:
        return dicom_zip.begins_as_dicom(opened)
