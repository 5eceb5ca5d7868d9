"""Scores as tables for the terminal, and the stage x domain matrix as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from garda.continual import Metric, patient_scores
from garda.files import replacing
from garda.intervals import bootstrap_interval

if TYPE_CHECKING:
    from rich.table import Table

    from garda.continual import Matrix
    from garda.evaluate import Score

NOTHING = "–"
METRICS: tuple[Metric, ...] = ("dice", "hd95")


def matrix_table(matrix: Matrix, notes: str | None = None) -> Table:
    """Stages as rows, domains as columns; scores of domains that a stage has not met yet are dim.

    Args:
        matrix: the means, with the interval below each; a domain with one patient says so in its heading.
        notes: printed below the table, such as the reason why a patient stands in two splits.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(_title(matrix)),
        caption=Text(notes) if notes else None,
        show_lines=bool(np.isfinite(matrix.intervals).any()),
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("after stage", no_wrap=True)
    for domain, patients in zip(matrix.domains, matrix.patients, strict=True):
        table.add_column(Text(f"{domain}\n{_count(patients)}"), justify="right", overflow="fold")
    for stage, domain in enumerate(matrix.domains[: len(matrix.values)]):
        cells = [_cell(matrix, stage, column) for column in range(len(matrix.domains))]
        seen = [Text(cell, style="" if column <= stage else "dim") for column, cell in enumerate(cells)]
        table.add_row(Text(f"{stage} {domain}"), *seen)
    return table


def scores_table(scores: Sequence[Score]) -> Table:
    """A row for each domain and class: number of patients, Dice and HD95, means over patients with their intervals."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="means over patients and their 95 % intervals", pad_edge=False)
    for heading in ("domain", "class"):
        table.add_column(heading, overflow="fold")
    for heading in ("n", "Dice", "HD95"):
        table.add_column(heading, justify="right")
    for domain, name, unit in dict.fromkeys((score.domain, score.name, score.unit) for score in scores):
        own = [score for score in scores if score.domain == domain]
        dice, distance = (_estimate([*patient_scores(own, metric, name).values()], metric) for metric in METRICS)
        patients = str(len({score.patient for score in own}))
        table.add_row(*map(Text, (domain, name, patients, dice, f"{distance} {unit}")))
    return table


def _estimate(values: Sequence[float], metric: Metric) -> str:
    if not values:
        return NOTHING
    form = "{:.3f}" if metric == "dice" else "{:.1f}"
    interval = bootstrap_interval(values)
    between = f" ({form.format(interval[0])}{NOTHING}{form.format(interval[1])})" if interval else ", no interval"
    return form.format(math.fsum(values) / len(values)) + between


def draw_matrix(path: Path, matrix: Matrix, note: str | None = None) -> None:
    """Write the matrix as a PNG heat map; a line parts the domains met (below it) from those still to come.

    The colours (cividis) can be told apart with any colour vision; lighter is better.

    Args:
        path: the file to write.
        matrix: at least one stage.
        note: written below, such as the reason why a patient stands in two splits.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    from matplotlib.figure import Figure

    stages, domains = matrix.values.shape
    figure = Figure(figsize=(2.6 + 1.1 * domains, 2.0 + 0.6 * stages), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    top = 1.0 if matrix.metric == "dice" else float(np.fmax.reduce(matrix.values, axis=None, initial=0.0)) or 1.0
    colours = "cividis" if matrix.metric == "dice" else "cividis_r"
    image = axes.imshow(matrix.values, cmap=colours, vmin=0.0, vmax=top, aspect="auto")
    axes.set_xticks(range(domains), matrix.domains, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(stages), [f"{stage} {name}" for stage, name in enumerate(matrix.domains[:stages])])
    axes.set(title=_subject(matrix), xlabel="scored on", ylabel="after stage")
    if note:
        figure.supxlabel(note, fontsize="x-small", wrap=True)
    _write_values(axes, matrix, top)
    _draw_border(axes, stages, domains)
    figure.colorbar(image, ax=axes, label=_quantity(matrix))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _quantity(matrix: Matrix) -> str:
    return "Dice" if matrix.metric == "dice" else f"HD95 ({matrix.unit})"


def _subject(matrix: Matrix) -> str:
    return f"{_quantity(matrix)}, {matrix.name or 'mean over classes'}"


def _title(matrix: Matrix) -> str:
    several = any(count > 1 for count in matrix.patients)
    return _subject(matrix) + (", mean over patients and its 95 % interval" if several else "")


def _count(patients: int) -> str:
    if patients == 0:
        return "not scored"
    return "n=1, no interval" if patients == 1 else f"n={patients}"


def _number(matrix: Matrix, value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return f"{value:.3f}" if matrix.metric == "dice" else f"{value:.1f}"


def _cell(matrix: Matrix, stage: int, domain: int) -> str:
    """The mean, and its interval on a second line; a lone patient in a domain of several is marked there."""
    mean = matrix.values[stage, domain]
    low, high = (_number(matrix, end) for end in matrix.intervals[stage, domain])
    if math.isnan(mean) or matrix.patients[domain] == 1:
        return _number(matrix, mean)
    return f"{_number(matrix, mean)}\n" + (f"{low}–{high}" if low != NOTHING else _count(1))


def _write_values(axes: Any, matrix: Matrix, top: float) -> None:
    """Each cell's number, dark on light colours and light on dark ones."""
    for (stage, domain), value in np.ndenumerate(matrix.values):
        share = value / top
        light = math.isnan(value) or (share if matrix.metric == "dice" else 1 - share) > 0.5
        text = _number(matrix, value)
        axes.text(domain, stage, text, ha="center", va="center", color="black" if light else "white")


def _draw_border(axes: Any, stages: int, domains: int) -> None:
    """A staircase to the right of each stage's own domain, legible on any colour."""
    across = np.repeat(np.arange(stages) + 0.5, 2)
    down = np.stack([np.arange(stages) - 0.5, np.arange(stages) + 0.5], axis=1).ravel()
    inside = 2 * domains - 1  # the last domain has nothing to its right
    for width, colour in ((4.0, "black"), (1.6, "white")):
        axes.plot(across[:inside], down[:inside], linewidth=width, color=colour, solid_joinstyle="miter")
    axes.set(xlim=(-0.5, domains - 0.5), ylim=(stages - 0.5, -0.5))
