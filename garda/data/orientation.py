"""One orientation for all scans, so that a slice looks as on a radiologist's screen."""

import numpy as np
from nibabel import orientations

from garda.data.scan import RawImage
from garda.data.task import Task

PLANES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}  # where a slice's columns, its rows, and slices run to


def codes_of(stored: RawImage, task: Task) -> str:
    """Where columns, rows and slices shall run to, such as ``LPS``; empty for a picture."""
    if stored.header is None:
        return ""
    if task.plane != "acquired":
        return PLANES[task.plane]
    world_axis = orientations.io_orientation(stored.affine)[2, 0]
    return PLANES[("sagittal", "coronal", "axial")[int(world_axis)]]


def orient(stored: RawImage, codes: str, affine: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Turn an image.

    Args:
        stored: as its file holds it.
        codes: where columns, rows and slices shall run to; a picture stays as it is.
        affine: (4, 4), in place of the image's own.

    Returns:
        (D, H, W, C) pixels, and their (4, 4) affine from (slice, row, column, 1) to RAS mm.
    """
    if stored.header is None:
        return stored.pixels.transpose(2, 1, 0, 3), np.eye(4)
    affine = stored.affine if affine is None else affine
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(codes))
    turned = orientations.apply_orientation(stored.pixels, turn)
    affine = affine @ orientations.inv_ornt_aff(turn, stored.pixels.shape[:3])
    return turned.transpose(2, 1, 0, 3), affine[:, [2, 1, 0, 3]]
