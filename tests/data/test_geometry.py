"""Spheres of known size in NIfTI files of any geometry: read, resampled, predicted and scored.

An image holds one sphere, its label another about the same centre; an ideal network finds the image's. All points of
the one surface are as far from the other as the radii differ, whatever the grid.
"""

import itertools
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.affines import voxel_sizes
from torch import nn

from garda.data import volume
from garda.data.manifest import Case
from garda.data.task import Intensity, Task
from garda.evaluation import metrics
from garda.models import inference
from garda.training.device import Compute, ComputeSettings

UNITS = {"mm": 1.0, "micron": 1e-3, "meter": 1e3, "unknown": 1.0}
FORMS = ("both", "sform", "qform", "sform, qform of another place")
RADIUS = 4.5  # of the image's sphere, in the longest side of a voxel
COMPUTE = Compute(ComputeSettings())


class Ideal(nn.Module):
    """Finds what the image shows."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 1e3 * torch.cat([0.5 - image, image - 0.5], dim=1)


angles = st.tuples(*[st.floats(-30, 30)] * 3)


@st.composite
def geometries(draw: st.DrawFn) -> dict:
    """A grid in mm, how its file tells of it, and what the network wants of it."""
    form = draw(st.sampled_from(FORMS))
    sides = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    axes = np.eye(3)[:, draw(st.permutations(range(3)))] * sides
    for axis, degrees in enumerate(draw(angles)):
        first, second, angle = (axis + 1) % 3, (axis + 2) % 3, np.radians(degrees / 2)
        turn = np.eye(3)
        turn[[first, first, second, second], [first, second, first, second]] = np.array(
            [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
        )
        axes = turn @ axes
    if "sform" in form:
        pair = draw(st.permutations(range(3)))
        axes[:, pair[0]] += np.tan(np.radians(draw(st.floats(-30, 30)))) * axes[:, pair[1]]
        axes[:, pair[0]] /= np.linalg.norm(axes[:, pair[0]])
    size = 10 ** draw(st.floats(np.log10(4e-4), 1.0))
    ratios = np.array(draw(st.tuples(*[st.floats(1, 3)] * 3)))
    matrix = axes * np.maximum(size * ratios / ratios.max(), 4e-4)
    return {
        "form": form,
        "unit": draw(st.sampled_from([*UNITS])),
        "matrix": matrix,
        "centre": np.array(draw(st.tuples(*[st.floats(-100, 100)] * 3))) * size,
        "network": size / ratios.max() * ratios.mean() * np.array(draw(st.tuples(*[st.floats(0.7, 1.5)] * 2))),
        "other": draw(st.floats(0.6, 1.3)),
        "version": draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image])),
    }


def image_of(found: dict, array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """The array in a file that tells of its geometry in its own way."""
    own = np.diag([1 / UNITS[found["unit"]]] * 3 + [1.0]) @ affine
    image = found["version"](array, None)
    image.header.set_xyzt_units(found["unit"])
    form = found["form"]
    if form != "sform":
        image.header.set_qform(own if form != FORMS[3] else np.diag([1.0, 2.0, 3.0, 1.0]), 1)
    if form != "qform":
        image.header.set_sform(own, 2)
    return found["version"](array, None, image.header)


def scored(found: dict, folder: Path) -> tuple[float, float, float]:
    """Dice and HD95 of the two spheres, and half a diagonal or a side of the coarser grid, mm."""
    matrix = found["matrix"]
    sides = np.linalg.norm(matrix, axis=0)
    radii = RADIUS * sides.max() * np.array([1, found["other"]])
    half = np.ceil(radii.max() * np.linalg.norm(np.linalg.inv(matrix), axis=1)).astype(int) + 1
    shape = 2 * half + 1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, found["centre"] - matrix @ half
    places = (np.indices(shape).reshape(3, -1).T - half) @ matrix.T
    for name, radius in zip(("image", "label"), radii, strict=True):
        inside = (np.linalg.norm(places, axis=1) < radius).reshape(shape)
        nib.save(image_of(found, inside.astype(np.uint8), affine), folder / f"{name}.nii")
    task = Task(
        name="t",
        classes=("background", "sphere"),
        size=(96, 96),
        spacing_mm=tuple(map(float, found["network"])),
        intensity=Intensity(percentiles=(0, 100)),
    )
    case = Case("c", "p", "test", "image.nii", ("label.nii",), (), "x.csv:2")
    scan = volume.read_volume(case, task, folder, with_label=True)
    assert sorted(scan.spacing_mm) == pytest.approx(sorted(sides), rel=1e-3)
    predicted = inference.segment(Ideal(), scan, task, COMPUTE)
    ((_, dice, hd95, unit),) = metrics.score_volume(
        predicted, scan.label, None, scan.spacing_mm, task.classes, scan.affine
    )
    assert unit == "mm"
    volume.write_label_map(predicted, scan, folder / "out.nii")
    mask, back = np.asarray(nib.load(folder / "out.nii").dataobj), nib.load(folder / "out.nii").affine
    middle = (back @ [*np.argwhere(mask).mean(axis=0), 1])[:3] * UNITS[found["unit"]]
    cell = scan.affine[:3, :3] * np.maximum(1, [1, *(found["network"] / voxel_sizes(scan.affine)[1:])])
    diagonal = max(np.linalg.norm(cell @ signs) for signs in itertools.product((1, -1), repeat=3))
    assert np.linalg.norm(middle - found["centre"]) < diagonal / 2
    return dice, hd95, max(diagonal / 2, np.linalg.norm(cell, axis=0).max())  # distances of voxels come in whole sides


def overlap(one: float, other: float) -> float:
    """Dice of two spheres about one centre."""
    return 2 * min(one, other) ** 3 / (one**3 + other**3)


def check(found: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dice, hd95, half = scored(found, Path(folder))
    longest = np.linalg.norm(found["matrix"], axis=0).max()
    one, other = RADIUS * longest, RADIUS * longest * found["other"]
    assert abs(hd95 - abs(one - other)) <= 1.001 * half
    small, large = sorted((one, other))
    assert overlap(max(small - half / 2, 0), large + half / 2) <= dice
    assert dice <= (overlap(small + half / 2, large - half / 2) if large - small > half else 1)


QUIET = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=50, **QUIET)
@given(geometries())
def test_spheres_keep_their_distance_in_any_geometry(found):
    check(found)


@pytest.mark.slow
@settings(max_examples=1000, **QUIET)
@given(geometries())
def test_spheres_keep_their_distance_in_a_thousand_geometries(found):
    check(found)
