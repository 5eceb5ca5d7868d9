"""DICOM series, in folders or zipped studies: their files in order, their pixels, and what their headers promise.

Of a header only the geometry goes further than this file; what a DICOM-SEG must repeat of its source is
:mod:`garda.dicom_seg`'s.
"""

from __future__ import annotations

import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from garda.private import private_folder
from garda.scan_files import ScanFile, Stored, from_itk, split_archive

PREAMBLE = 128  # bytes of anything before DICM (PS3.10, section 7.1)
IMAGE_POSITION = "0020|0032"
IDENTITY_REMOVED = "0012|0062"  # Patient Identity Removed (PS3.3, table C.7-1)
UNEVEN = 0.1  # of the slice distance: what differs more is a missing slice, what differs less is rounding


def is_dicom(path: Path) -> bool:
    """Whether a scan is read as DICOM: a folder, or something in a zip file."""
    return path.is_dir() or split_archive(path) is not None


def is_series(folder: Path) -> bool:
    """Whether a folder holds a DICOM file."""
    return any(file.is_file() and _begins_as_dicom(file) for file in folder.iterdir())


def archived_folders(path: Path) -> list[str]:
    """The folders of a zip file that hold DICOM files, sorted; nothing for what is no zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(_by_folder(archive))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError):  # reading it as a scan says what is wrong
        return []


def read_series(file: ScanFile) -> Stored:
    """The one series of a folder or a zipped study.

    Raises:
        DataError: there is none, or more than one, or its slices lie at uneven distances.
    """
    import SimpleITK as sitk

    with series(file) as names:
        reader = sitk.ImageSeriesReader()
        reader.MetaDataDictionaryArrayUpdateOn()
        reader.SetFileNames(names)
        image = reader.Execute()
        if image.HasMetaDataKey(
            "ITK_non_uniform_sampling_deviation"
        ):  # which ITK also sets where positions are rounded
            places = [reader.GetMetaData(index, IMAGE_POSITION).split("\\") for index in range(len(names))]
            steps = np.linalg.norm(np.diff(np.array(places, float), axis=0), axis=1)
            if steps.max() - steps.min() > UNEVEN * steps.min():
                raise file.error(
                    "has slices at uneven distances", "add the missing slices, or take the surplus ones out"
                )
        return from_itk(image, file)


def says_identity_removed(file: ScanFile) -> bool:
    """Whether every header of a series says PatientIdentityRemoved=YES; errors as :func:`series`."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with series(file) as names:
        for name in names:
            reader.SetFileName(name)
            reader.ReadImageInformation()
            if not reader.HasMetaDataKey(IDENTITY_REMOVED) or reader.GetMetaData(IDENTITY_REMOVED).strip() != "YES":
                return False
    return True


@contextmanager
def series(file: ScanFile) -> Iterator[tuple[str, ...]]:
    """The files of one series, in the order of its slices.

    A zipped study is unpacked into a private folder that goes with the block, under names of its own: what a zip file
    calls its members never becomes a path.

    Raises:
        DataError: the folder or zip file holds no series or several, or cannot be unpacked.
    """
    packed = split_archive(file.path)
    if packed is None:
        yield _in_order(file, file.path)
        return
    with private_folder() as folder:
        _unpack(file, *packed, folder)
        yield _in_order(file, folder)


def _in_order(file: ScanFile, folder: Path) -> tuple[str, ...]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what matters is raised below, as one line
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not found:
        raise file.error("is a folder without a DICOM series", "give an image file, or a folder with one series")
    if len(found) > 1:
        raise file.error(f"holds {len(found)} DICOM series", "give every series a folder of its own")
    return tuple(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), found[0]))


def _unpack(file: ScanFile, path: Path, inside: str, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            folders = _by_folder(archive)
            if not inside and len(folders) > 1:
                known = ", ".join(sorted(folders)[:3])
                raise file.error(f"holds {len(folders)} folders with DICOM files", f"name one behind it: {known}")
            members = folders.get(inside) or (next(iter(folders.values()), []) if not inside else [])
            if not members:
                raise file.error(
                    "is a zip file without a DICOM series there", "check the file and the folder behind it"
                )
            size, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if size > free:
                what = f"takes {size / 1e9:.1f} GB unpacked, {folder.parent} has {free / 1e9:.1f}"
                raise file.error(what, "set TMPDIR to a folder with more space")
            for index, member in enumerate(members):
                with archive.open(member) as source, (folder / f"{index:06}.dcm").open("xb") as target:
                    shutil.copyfileobj(source, target)
    except zipfile.BadZipFile:
        raise file.error("is no zip file, or damaged", "copy it again, it may be truncated") from None
    except (NotImplementedError, RuntimeError):  # an unknown compression, or a password
        raise file.error("is encrypted, or packed in an unknown way", "zip it again without a password") from None


def _by_folder(archive: zipfile.ZipFile) -> dict[str, list[zipfile.ZipInfo]]:
    """The DICOM files of a zip file by their folder in it, without its directory file, hidden files and viewers."""
    found = defaultdict(list)
    for member in archive.infolist():
        folder, _, name = member.filename.rpartition("/")
        if not name or name.startswith(".") or name == "DICOMDIR" or folder.split("/")[0] == "__MACOSX":
            continue
        with archive.open(member) as opened:
            if opened.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM":
                found[folder].append(member)
    return dict(found)


def _begins_as_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
