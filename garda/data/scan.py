"""One scan's file, folder or zipped study, what messages call it, and an image as it is stored."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from garda.core import files
from garda.core.errors import DataError

ARCHIVE = ".zip"
UNITS = (1.0, 1e3, 1.0, 1e-3)  # mm of NIfTI's codes: unknown, which is taken for mm, metre, millimetre, micrometre
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world axes to NIfTI's


@dataclass(frozen=True)
class ScanFile:
    """One file or series folder, and how messages speak of it.

    Attributes:
        path: where it lies; ``study.zip/T1`` is the folder T1 in a zipped study.
        name: what it is and its path relative to the data folder, such as ``image site/a.nii.gz``.
        where: the manifest row that names it.
    """

    path: Path
    name: str
    where: str

    def error(self, what: str, remedy: str) -> DataError:
        """What is wrong with this file, as an error to raise."""
        return DataError(self.where, f"{self.name} {what}", remedy)

    def require(self) -> None:
        """Make sure that the file or folder is there.

        Raises:
            DataError: it does not exist, its folder may not be entered, or it is a pipe, socket or device.
        """
        packed = split_archive(self.path)
        try:
            files.refuse_special(self.path if packed is None else packed[0])
        except (FileNotFoundError, NotADirectoryError):
            raise self.error("does not exist", "check the path and --data") from None
        except OSError as error:
            raise self.error(*cannot_read(error)) from None


@dataclass(frozen=True)
class RawImage:
    """An image as its file holds it.

    Attributes:
        pixels: (X, Y, Z, C) real numbers in the file's own order; X runs along a picture's columns, Y along its rows.
        header: geometry in NIfTI's terms (RAS, in the header's own unit); None for a picture, which has none.
    """

    pixels: np.ndarray
    header: nib.Nifti1Header | None

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), (X, Y, Z, 1) indices to RAS mm, whatever the header says of units; of a picture the identity."""
        if self.header is None:
            return np.eye(4)
        return np.diag([UNITS[self.header["xyzt_units"] & 7]] * 3 + [1.0]) @ self.header.get_best_affine()


def split_archive(path: Path) -> tuple[Path, str] | None:
    """The zip file of a path and the folder in it; None for other paths.

    >>> split_archive(Path("study.zip/T1"))
    (PosixPath('study.zip'), 'T1')
    """
    for archive in reversed((path, *path.parents)):
        if archive.suffix.lower() == ARCHIVE and not os.path.isdir(archive):  # which asks without an error
            inside = path.relative_to(archive).as_posix()
            return archive, "" if inside == "." else inside
    return None


def from_itk(image: Any, file: ScanFile) -> RawImage:
    """A SimpleITK image.

    Raises:
        DataError: it has neither two nor three dimensions.
    """
    import SimpleITK as sitk

    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    if image.GetDimension() != 3:
        raise file.error(f"has {image.GetDimension()} dimensions", "give a 2-D or 3-D image")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return with_affine(sitk.GetArrayFromImage(image), LPS_TO_RAS @ affine)


def with_affine(pixels: np.ndarray, affine: np.ndarray, sheared: bool = False) -> RawImage:
    """An image from ITK's array.

    Args:
        pixels: (Z, Y, X) or (Z, Y, X, C).
        affine: (4, 4), (X, Y, Z, 1) indices to RAS coordinates in mm.
        sheared: whether its axes are not at right angles, which a qform cannot hold.
    """
    pixels = pixels.reshape(*pixels.shape[:3], -1).transpose(2, 1, 0, 3)
    header = nib.Nifti1Header()
    header.set_data_shape(pixels.shape[:3])
    header.set_sform(affine, code="scanner")
    if not sheared:
        header.set_qform(affine, code="scanner")
    return RawImage(pixels, header)


def check_length(file: ScanFile, shape: Sequence[int], width: int, found: int) -> None:
    """Refuse a header whose sizes do not fit the data behind it; fewer bytes than a plane more are padding.

    Args:
        file: the scan.
        shape: its voxels, columns and rows first.
        width: bytes of a voxel.
        found: bytes of data.

    Raises:
        DataError: there are fewer, or more.
    """
    needed, plane = math.prod(shape) * width, math.prod(shape[:2]) * width
    if not 0 < needed <= found:
        raise file.error("holds fewer values than its header says", "copy it again, it may be truncated")
    if found - needed >= plane:
        raise file.error("holds more planes than its header says", "correct its header, or copy it again")


def cannot_read(error: OSError) -> tuple[str, str]:
    """What is wrong with a file that the system does not give, and the remedy."""
    return f"cannot be read ({files.reason(error)})", "check the path and its permissions"
