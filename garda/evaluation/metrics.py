"""Whole-scan scores: Dice and the 95th percentile of the Hausdorff distance, a row for each scan and class."""

import csv
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree
from torch import Tensor

from garda.core import files
from garda.core.errors import RunFolderError

Unit = Literal["mm", "px"]
SHEAR = 1e-3  # cosine between two axes, from which a grid is sheared
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Score:
    """One class of one scan after one stage.

    Attributes:
        stage: stage of the sequence, 0 is the source.
        domain: the scan's domain.
        patient: pseudonym of the patient.
        case: pseudonym of the scan.
        seed: seed of the run.
        name: name of the class.
        dice: Dice coefficient (Dice 1945) in [0, 1]; NaN where neither label nor prediction has the class.
        hd95: 95th percentile of the Hausdorff distance in ``unit``; NaN where ``dice`` is.
        unit: ``mm``, or ``px`` where the scan's format has no spacing.
    """

    stage: int
    domain: str
    patient: str
    case: str
    seed: int
    name: str
    dice: float
    hd95: float
    unit: Unit


def score_volume(
    predicted: Tensor,
    label: Tensor,
    labelled: Tensor | None,
    spacing_mm: Spacing | None,
    classes: Sequence[str],
    affine: NDArray[np.floating] | None = None,
) -> list[tuple[str, float, float, Unit]]:
    """Score a whole volume, the background left out.

    A class that one side lacks has Dice 0, and the diagonal of the image (voxels times spacing) as its distance. One
    that both lack has NaN for both. A volume of which one slice is scored is a 2-D image: as a volume it would have
    no inside, and every pixel would lie on the surface.

    Args:
        predicted: (D, H, W) class indices.
        label: (D, H, W) class indices.
        labelled: (D,) bool; where False, a slice counts as background on both sides. None: all are labelled.
        spacing_mm: (slice, row, column) spacing; None gives distances in pixels.
        classes: class names, the background first.
        affine: (3, 3) or (4, 4), (slice, row, column) indices to mm; distances on a sheared grid need it.

    Returns:
        (class name, Dice in [0, 1], HD95 in the unit, unit) for every foreground class.

    Raises:
        ValueError: the two maps differ in shape.

    >>> label = torch.zeros(3, 8, 8, dtype=torch.int64)
    >>> label[:, 2:6, 2:6] = 1
    >>> score_volume(label.roll(1, dims=2), label, None, (5.0, 0.5, 0.5), ("background", "organ"))
    [('organ', 0.75, 0.5, 'mm')]
    """
    if predicted.shape != label.shape or label.ndim != 3:
        raise ValueError(f"expected two maps of one shape (D, H, W), got {(*predicted.shape,)} and {(*label.shape,)}")
    spacing = spacing_mm or (1.0, 1.0, 1.0)
    unit: Unit = "mm" if spacing_mm else "px"
    matrix = None if affine is None or not spacing_mm or not _is_sheared(affine[:3, :3]) else affine[:3, :3]
    diagonal = _diagonal(label.shape, np.diag(spacing) if matrix is None else matrix)
    ours, theirs = (_scored_part(side.detach().cpu(), labelled) for side in (predicted, label))
    return [
        (name, *_score_masks(ours == index, theirs == index, spacing[-ours.ndim :], diagonal, matrix), unit)
        for index, name in enumerate(classes[1:], start=1)
    ]


def _is_sheared(matrix: NDArray[np.floating]) -> bool:
    """Whether the axes of a grid, the columns of its (3, 3) matrix, are not at right angles."""
    unit = matrix / np.linalg.norm(matrix, axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() > SHEAR)


def _diagonal(shape: Sequence[int], matrix: NDArray[np.floating]) -> float:
    """Length of the image's longest diagonal; a single slice has no thickness."""
    sides = matrix * ([0 if shape[0] == 1 else shape[0], *shape[1:]])
    signs = np.array([(1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1)])
    return float(np.linalg.norm(signs @ sides.T, axis=1).max())


def _scored_part(side: Tensor, labelled: Tensor | None) -> Tensor:
    """(D, H, W) with unlabelled slices emptied, or the (H, W) of the only slice that is scored."""
    keep = torch.ones(len(side), dtype=torch.bool) if labelled is None else labelled.detach().cpu().bool()
    return side[keep][0] if keep.sum() == 1 else side * keep[:, None, None]


def _hausdorff_in_space(ours: Tensor, theirs: Tensor, matrix: NDArray[np.floating]) -> float:
    """HD95 of two masks on a sheared grid: MONAI measures along a grid's axes, as if they were at right angles."""
    points = []
    for mask in (ours.numpy(), theirs.numpy()):
        edge = mask & ~binary_erosion(mask)
        points.append(np.argwhere(edge) @ matrix[:, -mask.ndim :].T)
    there, back = (cKDTree(other).query(own)[0] for own, other in (points, points[::-1]))
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _score_masks(
    predicted: Tensor, label: Tensor, spacing: Sequence[float], diagonal: float, matrix: NDArray[np.floating] | None
) -> tuple[float, float]:
    """Dice and HD95 of two (D, H, W) or (H, W) masks.

    MONAI gives NaN where one side alone is empty, so emptiness is settled before it is asked.
    """
    if not (predicted.any() or label.any()):
        return math.nan, math.nan
    if not (predicted.any() and label.any()):
        return 0.0, diagonal
    ours, theirs = predicted[None, None], label[None, None]
    dice = compute_dice(ours.float(), theirs.float())
    if matrix is not None:
        return dice.item(), _hausdorff_in_space(predicted, label, matrix)
    with warnings.catch_warnings():
        # MONAI 1.5 and 1.6 hand themselves an argument that they call deprecated
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        hd95 = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=spacing)
    return dice.item(), hd95.item()


_COLUMNS = [field.name for field in fields(Score)]
_AGAIN = "delete the file, it is computed again by the same command"


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write every row as CSV; the file appears whole or not at all.

    Numbers are written so that :func:`read_scores` gives them back bit by bit, NaN as an empty cell.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    lines = (["" if cell != cell else cell for cell in astuple(score)] for score in scores)
    files.write_csv(path, _COLUMNS, lines)


def read_scores(path: Path) -> list[Score]:
    """Read what :func:`write_scores` wrote.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise RunFolderError(path, "no such file", "give the folder of a run that has scored a stage") from None
    except (OSError, UnicodeDecodeError, csv.Error):
        raise RunFolderError(path, "is damaged", _AGAIN) from None
    if not rows or rows[0] != _COLUMNS:
        raise RunFolderError(path, f"expected the columns {','.join(_COLUMNS)}", _AGAIN)
    return [_parse(row, f"{path}, row {number}") for number, row in enumerate(rows[1:], start=2)]


def _parse(row: list[str], where: str) -> Score:
    try:
        stage, domain, patient, case, seed, name, dice, hd95, unit = row
        if unit not in get_args(Unit):
            raise ValueError(unit)
        numbers = float(dice or "nan"), float(hd95 or "nan")
        if not (0 <= numbers[0] <= 1 or dice == "") or not (0 <= numbers[1] < math.inf or hd95 == ""):
            raise ValueError("no Dice, or no distance")
        return Score(int(stage), domain, patient, case, int(seed), name, *numbers, cast(Unit, unit))
    except ValueError:
        raise RunFolderError(where, "is damaged", _AGAIN) from None
