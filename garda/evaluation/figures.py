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


def write_png(path: Path, figure: Figure) -> None:
    """Write a picture.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    figure.clear()  # a figure and its axes hold each other, and a canvas of 14 MB, until somebody collects garbage
    vars(figure.canvas).pop("renderer", None)


def draw_matrices(comparison: Comparison) -> Figure:
    """Each row's Dice after every stage (down) on every domain (across), means over its seeds; at least one row.

    Framed cells are domains after their own stage. The colours can be told apart with any colour vision; lighter is
    better.
    """
    count, domains = len(comparison.rows), len(comparison.domains)
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    figure = new_figure((1.2 + 0.55 * domains) * across + 2.0, (0.8 + 0.4 * domains) * down + 1.4)
    panels = panels_of(figure, count, down, across)
    for row, axes in zip(comparison.rows, panels, strict=False):
        _draw_heat_map(axes, continual.matrix(row.scores, comparison.domains, "dice"))
        axes.set_title(f"{row.name}{', bound' if row.bound else ''} (seeds: {len(row.runs)})", fontsize="small")
    bar = figure.colorbar(panels[0].images[0], ax=panels)
    bar.set_label("Dice, mean over classes, patients and seeds", fontsize="small")
    figure.supylabel("after stage", fontsize="small")
    return _finish(figure, comparison.note)


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


def draw_curves(comparison: Comparison) -> Figure:
    """A panel a domain: its Dice after every stage, a line a row, means over patients and seeds; at least one row.

    A band goes from the lowest to the highest seed. A dotted line stands at the domain's own stage; oracles are dashed.
    """
    domains = comparison.domains
    across = min(3, len(domains))
    down = math.ceil(len(domains) / across)
    legend = 0.22 * math.ceil(len(comparison.rows) / 4)
    figure = new_figure(3.4 * across, 2.6 * down + legend + 0.6)
    panels = panels_of(figure, len(domains), down, across)
    for number, (row, marker) in enumerate(zip(comparison.rows, itertools.cycle(MARKERS), strict=False)):
        values = continual.matrix(row.scores, domains, "dice").values
        seeds = np.stack([continual.matrix(run.scores, domains, "dice").values for run in row.runs.values()])
        style = {"linestyle": "--" if row.bound else "-", "color": f"C{number % 10}", "marker": marker}
        for index, (axes, line) in enumerate(zip(panels, values.T, strict=False)):
            axes.plot(line, **style, markersize=4, linewidth=1.2, label=row.name)
            if len(seeds) > 1:
                low, high = seeds[..., index].min(axis=0), seeds[..., index].max(axis=0)
                axes.fill_between(range(len(line)), low, high, color=style["color"], alpha=0.2, linewidth=0)
    for index, (axes, domain) in enumerate(zip(panels, domains, strict=False)):
        axes.axvline(index, color="grey", linestyle=":", linewidth=1.0)
        axes.set_title(domain, fontsize="small")
        axes.set(xticks=range(len(domains)), ylim=(-0.03, 1.03))
    figure.supylabel("Dice, mean over classes, patients and seeds", fontsize="small")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="x-small")
    return _finish(figure, comparison.note, "after stage")


def new_figure(width: float, height: float) -> Figure:
    """An empty picture, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def panels_of(figure: Figure, count: int, down: int, across: int) -> list[Any]:
    """``count`` panels in a grid, whose other places stay empty."""
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axes in panels[count:]:
        axes.axis("off")
    return panels


def _finish(figure: Figure, note: str | None, below: str = "") -> Figure:
    """The picture with its note below."""
    if text := "\n".join(filter(None, (below, note))):
        figure.supxlabel(text, fontsize="x-small", wrap=True)
    return figure


def draw_matrix(matrix: Matrix, note: str | None = None) -> Figure:
    """The matrix as a heat map; a line parts the domains seen (below it) from those still to come.

    The colours (cividis) can be told apart with any colour vision; lighter is better.

    Args:
        matrix: at least one stage.
        note: written below, such as the reason why a patient stands in two splits.
    """
    stages, domains = matrix.values.shape
    figure = new_figure(2.6 + 1.1 * domains, 2.0 + 0.6 * stages)
    axes = figure.add_subplot()
    top = 1.0 if matrix.metric == "dice" else float(np.fmax.reduce(matrix.values, axis=None, initial=0.0)) or 1.0
    colours = "cividis" if matrix.metric == "dice" else "cividis_r"
    edges = (np.arange(count + 1) - 0.5 for count in (domains, stages))
    image = axes.pcolormesh(*edges, matrix.values, cmap=colours, vmin=0.0, vmax=top)  # imshow resamples in 200 MB
    axes.set_xticks(range(domains), matrix.domains, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(stages), [f"{stage} {name}" for stage, name in enumerate(matrix.domains[:stages])])
    axes.set(title=tables.subject(matrix), xlabel="scored on", ylabel="after stage")
    _write_values(axes, matrix, top)
    _draw_border(axes, stages, domains)
    figure.colorbar(image, ax=axes, label=tables.quantity(matrix))
    return _finish(figure, note)


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
