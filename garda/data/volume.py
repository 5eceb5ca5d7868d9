"""Volumes: scans in one canonical orientation with scaled intensities, and label maps back in the scanner's space."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from nibabel.affines import voxel_sizes
from torch import Tensor

from garda.core import files
from garda.core.errors import DataError
from garda.data import orientation, preprocess, readers, scan
from garda.data.manifest import Case
from garda.data.preprocess import Grid
from garda.data.readers import NIFTI, PICTURE
from garda.data.scan import RawImage, ScanFile
from garda.data.task import Task

TOLERANCE = 0.25  # voxels by which a label may lie away from its image: headers are rounded
MOST = 5  # strange values that are named
ROUNDING = 1e-3  # how far a label value may be from a whole number, as scaled NIfTI values are
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, section 2.5.1


@dataclass(frozen=True)
class Frame:
    """How a volume's array lies in its file.

    Attributes:
        header: the file's geometry; None for a picture.
        codes: where columns, rows and slices of the canonical array run to, such as ``LPS``; empty for a picture.
    """

    header: nib.Nifti1Header | None = None
    codes: str = ""


@dataclass(frozen=True)
class Volume:
    """A scan in canonical orientation.

    In an axial volume slices run to superior (S), rows from anterior to posterior (P), columns from right to left
    (L), so that a slice looks as on a radiologist's screen; coronal slices run to P, their rows to inferior (I),
    columns to L; sagittal slices run to L, rows to I, columns to P. A picture keeps the orientation of its file.

    Attributes:
        case: the scan's name.
        image: (D, C, H, W) float32 in [0, 1].
        label: (D, H, W) int64 class indices; None where none was read.
        labelled: (D,) bool, False for a slice whose label is known to be missing; None where that is not known.
        affine: (4, 4), (slice, row, column, 1) indices to RAS coordinates in mm; the identity for a picture.
        spacing_mm: (slice, row, column) spacing; None for a picture.
        stored: how the array lies in its file.
        zoom: factor by which slices are enlarged before a network reads them.
        extremes: the least and greatest intensity as stored.
    """

    case: str
    image: Tensor
    label: Tensor | None
    labelled: Tensor | None
    affine: np.ndarray
    spacing_mm: tuple[float, float, float] | None
    stored: Frame
    zoom: float = 1.0
    extremes: tuple[float, float] = (0.0, 1.0)


def read_volume(case: Case, task: Task, data: Path, *, with_label: bool) -> Volume:
    """Read a scan, and its label if asked to.

    Intensities: bias field correction if the task wants it, then two values become 0 and 1, and what lies outside is
    clipped (:func:`garda.data.preprocess.scale_intensity`).

    Args:
        case: the manifest row.
        task: gives plane, channels, intensity scaling and label format.
        data: the folder that the case's paths are relative to.
        with_label: False opens no label file.

    Raises:
        DataError: a file is missing, damaged or of an unknown format; the image is constant, not finite, too small for
            bias field correction, or has other channels than the task; the label has another shape than the image, lies
            more than a quarter of a voxel away from it, or has a value outside the task's classes.
    """
    file = ScanFile(data / case.image, f"image {case.image}", case.where)
    stored = readers.read_stored(file)
    frame = Frame(stored.header, orientation.codes_of(stored, task))
    pixels, affine = orientation.orient(stored, frame.codes)
    spacing = None
    if stored.header is not None:
        slices, rows, columns = voxel_sizes(affine)
        spacing = (float(slices), float(rows), float(columns))
    image = _read_image(file, stored, pixels, task)
    extremes = (float(image.min()), float(image.max()))
    try:
        preprocess.check_extent(pixels.shape[:3], spacing, task)
        image = preprocess.scale_intensity(image, spacing, task.intensity)
    except DataError as error:
        raise file.error(error.what, error.remedy) from None
    image = np.repeat(image, task.channels // len(image), axis=0).swapaxes(0, 1)
    label = labelled = None
    if with_label and case.labels:
        label, labelled = _read_label(case, task, data, stored, frame.codes)
    tensor = torch.from_numpy(np.ascontiguousarray(image))
    return Volume(case.case, tensor, label, labelled, affine, spacing, frame, extremes=extremes)


def grid_for(volume: Volume, task: Task) -> Grid:
    """How a volume's slices lie on the network's grid, see :meth:`garda.data.preprocess.Grid.fit`."""
    spacing = None if volume.spacing_mm is None else volume.spacing_mm[1:]
    return Grid.fit(volume.image.shape[-2:], spacing, task, volume.zoom)


def write_label_map(label: Tensor, like: Volume, path: Path) -> None:
    """Write a label map in the space of the image that ``like`` was read from.

    NIfTI, DICOM and MetaImage become NIfTI (with the very affine and shape, where the image is NIfTI), pictures
    become PNG. Values are class indices.

    Args:
        label: (D, H, W) class indices on the grid of ``like``.
        like: the volume that was segmented.
        path: named by :func:`prediction_name`; appears whole or not at all.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    encoded = readers.encode_label_map(in_stored_order(label, like), like.stored.header, compress=path.suffix == ".gz")
    with files.replacing(path, private=True) as temporary:
        temporary.write_bytes(encoded)


def in_stored_order(label: Tensor, like: Volume) -> np.ndarray:
    """A label map in the order in which the file that ``like`` was read from holds its voxels.

    Args:
        label: (D, H, W) class indices on the grid of ``like``.
        like: the volume that was segmented.

    Returns:
        (X, Y, Z) class indices.
    """
    array = label.cpu().numpy().transpose(2, 1, 0)
    if like.stored.header is None:
        return array
    own = orientations.io_orientation(like.stored.header.get_best_affine())
    back = orientations.ornt_transform(orientations.axcodes2ornt(like.stored.codes), own)
    return orientations.apply_orientation(array, back)


def prediction_name(image: Path) -> str:
    """The name of an image's label map: NIfTI names stay, pictures become ``.png``, all others ``.nii.gz``.

    A zipped study's is its own name, with that of the folder where one is named.

    >>> [prediction_name(Path(image)) for image in ("scan.nii", "cell.tif", "study.zip/T1")]
    ['scan.nii', 'cell.png', 'study_T1.nii.gz']
    """
    path = image.absolute()
    if packed := scan.split_archive(path):
        return "_".join([packed[0].stem, *Path(packed[1]).parts]) + ".nii.gz"
    name, suffix = (path.name, "") if path.is_dir() else readers.split_name(path)
    return name + (suffix if suffix in NIFTI else ".png" if suffix in PICTURE else ".nii.gz")


def _read_image(file: ScanFile, stored: RawImage, pixels: np.ndarray, task: Task) -> np.ndarray:
    """(D, H, W, C) pixels as (C, D, H, W) float32, C being 1 or the task's channels."""
    with np.errstate(over="ignore"):
        image = np.moveaxis(pixels, -1, 0).astype(np.float32)
    if not np.isfinite(image).all():
        raise file.error("holds NaN or infinite values", "repair the image, or leave the case out")
    if len(image) == 3 and task.channels == 1 and stored.header is None:
        image = np.tensordot(LUMA, image, axes=1)[None]
    if len(image) not in (1, task.channels):
        wanted = "1" if task.channels == 1 else f"1 or {task.channels}"
        raise file.error(f"has {len(image)} channels, the task takes {wanted}", "store each channel as its own file")
    if image.min() == image.max():
        raise file.error("is constant", "give another image, or leave the case out")
    return image


def _read_label(case: Case, task: Task, data: Path, image: RawImage, codes: str) -> tuple[Tensor, Tensor | None]:
    """(D, H, W) class indices, and the (D,) slices that count as labelled."""
    masks = task.label.masks
    values = 2 if masks else len(task.classes)
    meaning = task.label.values if case.values is None else dict(case.values)
    maps = []
    for name in case.labels:
        file = ScanFile(data / name, f"label {name}", case.where)
        maps.append(_class_indices(_read_aligned(file, image, codes), file, meaning, values))
    if not masks:
        return torch.from_numpy(maps[0]), None
    label = np.zeros(maps[0].shape, np.int64)
    for index, mask in enumerate(maps, start=1):
        label[mask == 1] = index
    if task.label.slice_labelled_by is None:
        return torch.from_numpy(label), None
    decisive = maps[masks.index(task.label.slice_labelled_by)]
    return torch.from_numpy(label), torch.from_numpy(decisive.any(axis=(1, 2)))


def _read_aligned(file: ScanFile, image: RawImage, codes: str) -> np.ndarray:
    """(D, H, W) values of a label file, which must lie where its image lies.

    Where both are stored alike the label is turned as the image is: of an image at 45 degrees, rounding alone would say
    which axis is which.
    """
    stored = readers.read_stored(file, palette=True)
    if (stored.header is None) != (codes == ""):
        raise file.error("is of another kind of format than its image", "store both as NIfTI or both as pictures")
    if (channels := stored.pixels.shape[3]) != 1:
        raise file.error(f"has {channels} channels", "store class indices in one channel")
    shape = image.pixels.shape[:3]
    alike = stored.pixels.shape[:3] == shape and _apart(stored.affine, image.affine, shape) <= TOLERANCE
    (pixels, own), (wanted, affine) = (
        orientation.orient(stored, codes, image.affine if alike else None),
        orientation.orient(image, codes),
    )
    if pixels.shape[:3] != wanted.shape[:3]:
        sizes = (" x ".join(map(str, each.shape[:3])) for each in (pixels, wanted))
        raise file.error("has {} voxels, its image {}".format(*sizes), "give the label that was drawn on this image")
    if (apart := _apart(own, affine, wanted.shape[:3])) > TOLERANCE:
        raise file.error(f"lies {apart:.3g} voxels away from its image", "resample the label to the image's grid")
    return pixels[..., 0]


def _apart(ours: np.ndarray, theirs: np.ndarray, shape: Sequence[int]) -> float:
    """How far two (4, 4) affines put a corner of one grid apart, in the shortest side of a voxel."""
    corners = np.array([*itertools.product(*((0, count - 1) for count in shape), [1])])
    moved = np.linalg.norm((corners @ (ours - theirs).T)[:, :3], axis=1).max()
    return float(moved / voxel_sizes(theirs).min())


def _class_indices(pixels: np.ndarray, file: ScanFile, values: dict[int, int], count: int) -> np.ndarray:
    """(D, H, W) file values as int64 class indices below ``count``."""
    if pixels.dtype.kind in "biu" and pixels.min() >= 0 and pixels.max() < 2**16:  # nearly all labels: by a table
        table = np.arange(int(pixels.max()) + 1)
        for value, index in values.items():
            if 0 <= value < len(table):
                table[value] = index
        indices = table[pixels.astype(np.uint16, copy=False)]
        if indices.max() < count:
            return np.ascontiguousarray(indices)
    with np.errstate(invalid="ignore"):
        whole = np.rint(pixels).astype(np.int64)
    indices = whole.copy()
    for value, index in values.items():
        indices[whole == value] = index
    misfit = ~(np.abs(whole - pixels) <= ROUNDING) | (indices < 0) | (indices >= count)
    if misfit.any():
        strange = [f"{value:g}" for value in np.unique(pixels[misfit])]
        named = ", ".join(strange[:MOST]) + (f" and {len(strange) - MOST} more" if len(strange) > MOST else "")
        what = f"holds the value{'s' * (len(strange) > 1)} {named}, expected 0 to {count - 1}"
        raise file.error(what, "correct the label, or say what they mean in SITE.yaml beside the manifest")
    return np.ascontiguousarray(indices)
