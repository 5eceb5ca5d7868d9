"""Slices as small pictures for a page that stays in a hospital: what was drawn dashed, what was found solid."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from garda.evaluation.figures import new_figure
from garda.evaluation.report_figures import COLOURS

SLICES = 5  # of a scan
MOST_BYTES = 24_000  # of a picture
INCHES, DOTS = 1.6, 150
QUALITIES = (75, 50, 25, 5)  # of WebP, until a picture is small enough
MARGIN = 0.25  # of the structures' extent that is shown around them


@dataclass(frozen=True)
class Slice:
    """A slice of a scan, cut out around what was drawn and found.

    Attributes:
        number: of the slice, from 0.
        grey: (H, W) in [0, 1].
        found: (H, W) class indices of the network.
        drawn: (H, W) class indices of a person; None where nobody has drawn.
        unsure: (H, W) bool.
        aspect: height of a pixel over its width.
    """

    number: int
    grey: NDArray[np.float32]
    found: NDArray[np.int64]
    drawn: NDArray[np.int64] | None
    unsure: NDArray[np.bool_]
    aspect: float


def cut_slices(
    grey: NDArray[np.float32],
    found: NDArray[np.int64],
    drawn: NDArray[np.int64] | None,
    unsure: NDArray[np.bool_],
    spacing: Sequence[float] | None,
) -> list[Slice]:
    """Five slices, spread evenly over those in which anything was drawn or found; all (D, H, W), spacing in mm."""
    marked = (found > 0) if drawn is None else (found > 0) | (drawn > 0)
    shown = np.flatnonzero(marked.any(axis=(1, 2)))
    shown = shown if shown.size else np.arange(len(grey))
    chosen = np.unique(np.linspace(0, len(shown) - 1, SLICES).round().astype(int))
    rows, columns = (_extent(np.asarray(marked.any(axis=axes))) for axes in ((0, 2), (0, 1)))
    aspect = 1.0 if spacing is None else spacing[1] / spacing[2]
    return [
        Slice(
            int(index),
            grey[index, rows, columns].copy(),
            found[index, rows, columns].copy(),
            None if drawn is None else drawn[index, rows, columns].copy(),
            unsure[index, rows, columns].copy(),
            aspect,
        )
        for index in shown[chosen]
    ]


def _extent(marked: NDArray[np.bool_]) -> slice:
    """Where something is marked, and a margin; all of it where nothing is."""
    places = np.flatnonzero(marked)
    if not places.size:
        return slice(0, len(marked))
    margin = max(8, round(MARGIN * (places[-1] - places[0])))
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1)


def draw(shown: Slice) -> str:
    """The slice as a WebP picture in base64, of at most ``MOST_BYTES`` bytes before that."""
    figure = new_figure(INCHES, INCHES)
    figure.set_layout_engine("none")
    figure.set_facecolor("black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(shown.grey, cmap="gray", vmin=0, vmax=1, aspect=shown.aspect)
    yellow = np.zeros((*shown.unsure.shape, 4), np.float32)
    yellow[shown.unsure] = (1.0, 0.9, 0.0, 0.4)
    axes.imshow(yellow, aspect=shown.aspect, interpolation="nearest")
    for labels, style in ((shown.found, "solid"), (shown.drawn, "dashed")):
        for index in () if labels is None else np.unique(labels[labels > 0]):
            mask = labels == index
            if not mask.all():
                axes.contour(mask, [0.5], colors=COLOURS[(index - 1) % len(COLOURS)], linestyles=style, linewidths=1.0)
    for quality in QUALITIES:
        written = io.BytesIO()
        figure.savefig(written, format="webp", dpi=DOTS, pil_kwargs={"quality": quality})
        if written.tell() <= MOST_BYTES:
            break
    return base64.b64encode(written.getvalue()).decode()
