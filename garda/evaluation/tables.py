"""A comparison as tables: for the terminal, as printed in CSV, and every number in CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from garda.core import files
from garda.evaluation import bootstrap, continual
from garda.evaluation.continual import Matrix, Metric
from garda.evaluation.measures import Comparison, Difference, Key, Measure, Measures

if TYPE_CHECKING:
    from rich.table import Table

    from garda.evaluation.metrics import Score

DICE_TITLE = "Dice after the last stage, mean over classes, patients and seeds, and its 95 % interval"
NUMBERS_TITLE = "HD95 after the last stage, mean over domains; numbers of the sequence, means over seeds"
COST_TITLE = "Training and what is kept, means over seeds"
DIFFERENCE_TITLE = "Dice less that of another row, paired by patient and seed, and its 95 % interval"
Format = Callable[[float], str]
Columns = dict[str, tuple[Key, Format]]
_UNKNOWN = Measure(math.nan)


@dataclass(frozen=True)
class Wide:
    """A table as text.

    Attributes:
        title: what it shows.
        note: printed below it; None for none.
        heading: names of the columns.
        rows: cells of text; a line break parts a mean from its interval.
        words: number of columns at the left that hold words.
    """

    title: str
    note: str | None
    heading: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int


def row_tables(comparison: Comparison, measures: Mapping[str, Measures]) -> list[Wide]:
    """Three tables with a line a row: Dice of each domain, the sequence in numbers, and what it cost.

    Args:
        comparison: the rows.
        measures: see :func:`garda.evaluation.measures.measure`.
    """
    heads = {row.name: (row.name, "bound" if row.bound else "", str(len(row.runs))) for row in comparison.rows}

    def table(title: str, heading: tuple[str, ...], columns: Columns) -> Wide:
        cells = {name: _cells(measures[name], columns.values()) for name in heads}
        rows = [(*head[: len(heading)], *cells[name]) for name, head in heads.items()]
        return Wide(title, comparison.note, (*heading, *columns), rows, words=min(2, len(heading)))

    units = "/".join(sorted({known[Key("hd95")].unit for known in measures.values()}))
    return [
        table(DICE_TITLE, ("row", "kind", "seeds"), _dice_columns(comparison, measures.values())),
        table(NUMBERS_TITLE, ("row",), _number_columns(units)),
        table(COST_TITLE, ("row",), _cost_columns()),
    ]


def difference_table(comparison: Comparison, found: Sequence[Difference]) -> Wide:
    """How each row differs from its reference, on average and for each domain."""
    columns = _dice_columns(comparison, [difference.measures for difference in found], "{:+.3f}".format)
    rows = [(each.row, each.against, str(each.seeds), *_cells(each.measures, columns.values())) for each in found]
    return Wide(DIFFERENCE_TITLE, comparison.note, ("row", "against", "seeds", *columns), rows, words=2)


def _dice_columns(comparison: Comparison, measures: Iterable[Measures], form: Format = "{:.3f}".format) -> Columns:
    """The domains with their number of patients, then their mean."""
    known = list(measures)
    columns: Columns = {}
    for domain in comparison.domains:
        key = Key("dice", domain)
        patients = max((each[key].patients or 0 for each in known), default=0)
        columns[f"{domain}\nn={patients}"] = (key, form)
    return columns | {"mean": (Key("dice"), form)}


def _number_columns(unit: str) -> Columns:
    return {
        f"HD95 ({unit})": (Key("hd95"), "{:.1f}".format),
        "forgetting": (Key("forgetting"), "{:.3f}".format),
        "backward": (Key("backward_transfer"), "{:+.3f}".format),
        "forward": (Key("forward_transfer"), "{:+.3f}".format),
        "plasticity": (Key("plasticity"), "{:+.3f}".format),
        "gap closed": (Key("gap_closed"), "{:.0%}".format),
    }


def _cost_columns() -> Columns:
    from rich.filesize import decimal

    def size(count: float) -> str:
        return decimal(round(count))

    return {
        "training": (Key("training_seconds"), "{:.0f} s".format),
        "kept a domain": (Key("bytes_per_domain"), size),
        "kept in all": (Key("bytes"), size),
    }


def _cells(measures: Measures, columns: Iterable[tuple[Key, Format]]) -> list[str]:
    return [_cell(measures.get(key, _UNKNOWN), form) for key, form in columns]


def _cell(measure: Measure, form: Format) -> str:
    """The number, and its interval on a second line."""
    if math.isnan(measure.value):
        return NOTHING
    text = form(measure.value)
    if measure.interval is None:
        return text
    return f"{text}\n" + (" to " if text[0] in "+-" else "–").join(map(form, measure.interval))


def rich_table(wide: Wide) -> Table:
    """For the terminal; text is no markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(wide.title),
        caption=Text(wide.note) if wide.note else None,
        show_lines=any("\n" in cell for cells in wide.rows for cell in cells),
        collapse_padding=True,
        pad_edge=False,
    )
    for index, name in enumerate(wide.heading):
        table.add_column(Text(name), justify="left" if index < wide.words else "right", overflow="fold")
    for cells in wide.rows:
        table.add_row(*map(Text, cells))
    return table


def write_wide(path: Path, tables: Sequence[Wide]) -> None:
    """Write tables of the same rows, whose names come first in each, as one CSV with cells as printed.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    first, *others = tables
    heading = [*first.heading, *(name for other in others for name in other.heading[1:])]
    lines = [
        [*cells, *(cell for other in others for cell in other.rows[number][1:])]
        for number, cells in enumerate(first.rows)
    ]
    _write(path, heading, ([cell.replace("\n", " ") for cell in line] for line in lines), first.note)


def write_measures(path: Path, comparison: Comparison, measures: Mapping[str, Measures]) -> None:
    """Write every number, a line each; what is undefined is an empty cell. Errors as in :func:`write_wide`."""
    lines = (
        [row.name, row.method, row.label, "bound" if row.bound else "", len(row.runs), *key, *_numbers(measure)]
        for row in comparison.rows
        for key, measure in measures[row.name].items()
    )
    heading = ["row", "method", "label", "kind", "seeds", "quantity", "domain", "class", "value", "low", "high"]
    _write(path, [*heading, "patients", "unit"], lines, comparison.note)


def write_differences(path: Path, comparison: Comparison, found: Iterable[Difference]) -> None:
    """Write every difference, a line each, as :func:`write_measures` does."""
    lines = (
        [each.row, each.against, each.seeds, *key, *_numbers(measure)]
        for each in found
        for key, measure in each.measures.items()
    )
    heading = ["row", "against", "seeds", "quantity", "domain", "class", "difference", "low", "high"]
    _write(path, [*heading, "patients", "unit"], lines, comparison.note)


def _numbers(measure: Measure) -> list[object]:
    """Value, low, high, patients, unit."""
    low, high = measure.interval or (None, None)
    value = None if math.isnan(measure.value) else measure.value
    return [value, low, high, measure.patients, measure.unit]


def _write(path: Path, heading: Sequence[str], lines: Iterable[Sequence[object]], note: str | None) -> None:
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(name.replace("\n", " ") for name in heading), *(["note"] if note else [])])
        writer.writerows([*line, *([note] if note else [])] for line in lines)


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
        cells = [_mean_cell(matrix, stage, column) for column in range(len(matrix.domains))]
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
        dice, distance = (
            _estimate([*continual.patient_scores(own, metric, name).values()], metric) for metric in METRICS
        )
        patients = str(len({score.patient for score in own}))
        table.add_row(*map(Text, (domain, name, patients, dice, f"{distance} {unit}")))
    return table


def _estimate(values: Sequence[float], metric: Metric) -> str:
    if not values:
        return NOTHING
    form = "{:.3f}" if metric == "dice" else "{:.1f}"
    interval = bootstrap.bootstrap_interval(values)
    between = f" ({form.format(interval[0])}{NOTHING}{form.format(interval[1])})" if interval else ", no interval"
    return form.format(math.fsum(values) / len(values)) + between


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


def _mean_cell(matrix: Matrix, stage: int, domain: int) -> str:
    """The mean, and its interval on a second line; a lone patient in a domain of several is marked there."""
    mean = matrix.values[stage, domain]
    low, high = (_number(matrix, end) for end in matrix.intervals[stage, domain])
    if math.isnan(mean) or matrix.patients[domain] == 1:
        return _number(matrix, mean)
    return f"{_number(matrix, mean)}\n" + (f"{low}–{high}" if low != NOTHING else _count(1))
