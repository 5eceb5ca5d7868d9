"""A comparison as pictures: a heat map a row, and each domain's Dice over the stages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from garda.comparison.measures import Comparison
from garda.continual import Matrix, matrix
from garda.figures import NOTHING
from garda.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"  # with ten colours, forty rows look different


def draw_matrices(path: Path, comparison: Comparison) -> None:
    """Write a PNG with each row's Dice after every stage (down) on every domain (across), means over its seeds.

    Framed cells are domains when they were met. The colours can be told apart with any colour vision; lighter is
    better.

    Args:
        path: the file to write.
        comparison: at least one row.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    from matplotlib.figure import Figure

    count, domains = len(comparison.rows), len(comparison.domains)
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    width, height = 1.2 + 0.55 * domains, 0.8 + 0.4 * domains
    figure = Figure(figsize=(width * across + 2.0, height * down + 1.4), dpi=150, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for row, axes in zip(comparison.rows, panels, strict=False):
        _draw_heat_map(axes, matrix(row.scores, comparison.domains, "dice"))
        axes.set_title(f"{row.name}{', bound' if row.bound else ''} (seeds: {len(row.runs)})", fontsize="small")
    for axes in panels[count:]:
        axes.axis("off")
    bar = figure.colorbar(panels[0].images[0], ax=panels)
    bar.set_label("Dice, mean over classes, patients and seeds", fontsize="small")
    figure.supylabel("after stage", fontsize="small")
    _finish(path, figure, comparison.note)


def _draw_heat_map(axes: Any, found: Matrix) -> None:
    """Means as colours and numbers, the diagonal framed."""
    axes.imshow(found.values, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(found.domains)), found.domains, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(found.values)))
    axes.tick_params(labelsize="x-small")
    for (stage, domain), value in np.ndenumerate(found.values):
        text = NOTHING if math.isnan(value) else f"{value:.2f}"
        colour = "white" if value < 0.5 else "black"
        frame = {"facecolor": "none", "edgecolor": colour, "pad": 1.5} if stage == domain else None
        axes.text(domain, stage, text, ha="center", va="center", color=colour, fontsize="x-small", bbox=frame)


def draw_curves(path: Path, comparison: Comparison) -> None:
    """Write a PNG with a panel a domain: its Dice after every stage, a line a row, means over patients and seeds.

    A dotted line stands at the stage that met the domain; bounds are dashed.

    Args:
        path: the file to write.
        comparison: at least one row.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    from matplotlib.figure import Figure

    domains = comparison.domains
    across = min(3, len(domains))
    down = math.ceil(len(domains) / across)
    legend = 0.22 * math.ceil(len(comparison.rows) / 4)
    figure = Figure(figsize=(3.4 * across, 2.6 * down + legend + 0.6), dpi=150, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    _draw_lines(panels, comparison)
    for index, (axes, domain) in enumerate(zip(panels, domains, strict=False)):
        axes.axvline(index, color="grey", linestyle=":", linewidth=1.0)
        axes.set_title(domain, fontsize="small")
        axes.set(xticks=range(len(domains)), ylim=(-0.03, 1.03))
    for axes in panels[len(domains) :]:
        axes.axis("off")
    figure.supylabel("Dice, mean over classes, patients and seeds", fontsize="small")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="x-small")
    _finish(path, figure, comparison.note, "after stage")


def _draw_lines(panels: Sequence[Any], comparison: Comparison) -> None:
    looks = zip(comparison.rows, itertools.cycle(MARKERS), strict=False)
    for number, (row, marker) in enumerate(looks):
        values = matrix(row.scores, comparison.domains, "dice").values
        style = "--" if row.bound else "-"
        for axes, line in zip(panels, values.T, strict=False):
            axes.plot(line, style, color=f"C{number % 10}", marker=marker, markersize=4, linewidth=1.2, label=row.name)


def _finish(path: Path, figure: Figure, note: str | None, below: str = "") -> None:
    """Write the picture with its note below."""
    text = "\n".join(filter(None, (below, note)))
    if text:
        figure.supxlabel(text, fontsize="x-small", wrap=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
