"""A run and a comparison as pictures: heat maps of stages and domains, and each domain's Dice over the stages."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from garda.core import files
from garda.evaluation import continual, tables
from garda.evaluation.continual import Matrix
from garda.evaluation.measures import Comparison
from garda.evaluation.tables import NOTHING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"  # with ten colours, forty rows look different


def draw_matrices(path: Path, comparison: Comparison) -> None:
    """Write a PNG with each row's Dice after every stage (down) on every domain (across), means over its seeds.

    Framed cells are domains after their own stage. The colours can be told apart with any colour vision; lighter is
    better.

    Args:
        path: the file to write.
        comparison: at least one row.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    count, domains = len(comparison.rows), len(comparison.domains)
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    figure = _figure((1.2 + 0.55 * domains) * across + 2.0, (0.8 + 0.4 * domains) * down + 1.4)
    panels = _panels(figure, count, down, across)
    for row, axes in zip(comparison.rows, panels, strict=False):
        _draw_heat_map(axes, continual.matrix(row.scores, comparison.domains, "dice"))
        axes.set_title(f"{row.name}{', bound' if row.bound else ''} (seeds: {len(row.runs)})", fontsize="small")
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

    A dotted line stands at the domain's own stage; oracles are dashed.

    Args:
        path: the file to write.
        comparison: at least one row.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    domains = comparison.domains
    across = min(3, len(domains))
    down = math.ceil(len(domains) / across)
    legend = 0.22 * math.ceil(len(comparison.rows) / 4)
    figure = _figure(3.4 * across, 2.6 * down + legend + 0.6)
    panels = _panels(figure, len(domains), down, across)
    for number, (row, marker) in enumerate(zip(comparison.rows, itertools.cycle(MARKERS), strict=False)):
        values = continual.matrix(row.scores, domains, "dice").values
        style = {"linestyle": "--" if row.bound else "-", "color": f"C{number % 10}", "marker": marker}
        for axes, line in zip(panels, values.T, strict=False):
            axes.plot(line, **style, markersize=4, linewidth=1.2, label=row.name)
    for index, (axes, domain) in enumerate(zip(panels, domains, strict=False)):
        axes.axvline(index, color="grey", linestyle=":", linewidth=1.0)
        axes.set_title(domain, fontsize="small")
        axes.set(xticks=range(len(domains)), ylim=(-0.03, 1.03))
    figure.supylabel("Dice, mean over classes, patients and seeds", fontsize="small")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="x-small")
    _finish(path, figure, comparison.note, "after stage")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _panels(figure: Figure, count: int, down: int, across: int) -> list[Any]:
    """``count`` panels in a grid, whose other places stay empty."""
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axes in panels[count:]:
        axes.axis("off")
    return panels


def _finish(path: Path, figure: Figure, note: str | None, below: str = "") -> None:
    """Write the picture with its note below."""
    if text := "\n".join(filter(None, (below, note))):
        figure.supxlabel(text, fontsize="x-small", wrap=True)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    figure.clear()  # a figure and its axes hold each other, and a canvas of 14 MB, until somebody collects garbage
    vars(figure.canvas).pop("renderer", None)


def draw_matrix(path: Path, matrix: Matrix, note: str | None = None) -> None:
    """Write the matrix as a PNG heat map; a line parts the domains seen (below it) from those still to come.

    The colours (cividis) can be told apart with any colour vision; lighter is better.

    Args:
        path: the file to write.
        matrix: at least one stage.
        note: written below, such as the reason why a patient stands in two splits.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    stages, domains = matrix.values.shape
    figure = _figure(2.6 + 1.1 * domains, 2.0 + 0.6 * stages)
    axes = figure.add_subplot()
    top = 1.0 if matrix.metric == "dice" else float(np.fmax.reduce(matrix.values, axis=None, initial=0.0)) or 1.0
    colours = "cividis" if matrix.metric == "dice" else "cividis_r"
    image = axes.imshow(matrix.values, cmap=colours, vmin=0.0, vmax=top, aspect="auto")
    axes.set_xticks(range(domains), matrix.domains, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(stages), [f"{stage} {name}" for stage, name in enumerate(matrix.domains[:stages])])
    axes.set(title=tables.subject(matrix), xlabel="scored on", ylabel="after stage")
    _write_values(axes, matrix, top)
    _draw_border(axes, stages, domains)
    figure.colorbar(image, ax=axes, label=tables.quantity(matrix))
    _finish(path, figure, note)


def _write_values(axes: Any, matrix: Matrix, top: float) -> None:
    """Each cell's number, dark on light colours and light on dark ones."""
    for (stage, domain), value in np.ndenumerate(matrix.values):
        share = value / top
        light = math.isnan(value) or (share if matrix.metric == "dice" else 1 - share) > 0.5
        text = NOTHING if math.isnan(value) else tables.number_format(matrix)(value)
        axes.text(domain, stage, text, ha="center", va="center", color="black" if light else "white")


def _draw_border(axes: Any, stages: int, domains: int) -> None:
    """A staircase to the right of each stage's own domain, legible on any colour."""
    across = np.repeat(np.arange(stages) + 0.5, 2)
    down = np.stack([np.arange(stages) - 0.5, np.arange(stages) + 0.5], axis=1).ravel()
    inside = 2 * domains - 1  # the last domain has nothing to its right
    for width, colour in ((4.0, "black"), (1.6, "white")):
        axes.plot(across[:inside], down[:inside], linewidth=width, color=colour, solid_joinstyle="miter")
    axes.set(xlim=(-0.5, domains - 0.5), ylim=(stages - 0.5, -0.5))
