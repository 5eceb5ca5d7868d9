"""A run and a comparison as tables: for the terminal, as printed in CSV, and every number in CSV."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from garda.core import files
from garda.evaluation import bootstrap, continual
from garda.evaluation.bootstrap import Interval
from garda.evaluation.continual import Matrix
from garda.evaluation.measures import METRICS, Comparison, Difference, Key, Measure, Measures
from garda.evaluation.metrics import Score

DICE_TITLE = "Dice after the last stage, mean over classes, patients and seeds, and its 95 % interval"
NUMBERS_TITLE = "HD95 after the last stage, mean over domains; numbers of the sequence, means over seeds"
COST_TITLE = "Training and what is kept, means over seeds"
DIFFERENCE_TITLE = "Dice less that of another row, paired by patient and seed, and its 95 % interval"
SCORES_TITLE = "means over patients and their 95 % intervals"
NOTHING = "–"
Format = Callable[[float], str]
Columns = dict[str, tuple[Key, Format]]


def _size(count: float) -> str:
    return decimal(round(count))


COSTS: Columns = {
    "training": (Key("training_seconds"), "{:.0f} s".format),
    "kept a domain": (Key("bytes_per_domain"), _size),
    "kept in all": (Key("bytes"), _size),
}
NUMBERS: Columns = {
    "forgetting": (Key("forgetting"), "{:.3f}".format),
    "backward": (Key("backward_transfer"), "{:+.3f}".format),
    "forward": (Key("forward_transfer"), "{:+.3f}".format),
    "plasticity": (Key("plasticity"), "{:+.3f}".format),
    "gap closed": (Key("gap_closed"), "{:.0%}".format),
}


@dataclass(frozen=True)
class Wide:
    """A table as text.

    Attributes:
        title: what it shows.
        note: printed below it; None for none.
        heading: names of the columns.
        rows: cells of text; a line break parts a mean from its interval.
        words: number of columns at the left that hold words.
        staircase: whether row n shows what follows its first n + 1 numbers dimly: domains that are not seen yet.
    """

    title: str
    note: str | None
    heading: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int
    staircase: bool = False


def row_tables(comparison: Comparison, measures: Mapping[str, Measures]) -> list[Wide]:
    """Three tables with a line a row: Dice of each domain, the sequence in numbers, and what it cost.

    Args:
        comparison: the rows.
        measures: see :func:`garda.evaluation.measures.measure`.
    """
    heads = [(row.name, "bound" if row.bound else "", str(len(row.runs))) for row in comparison.rows]
    units = "/".join(sorted({known[Key("hd95")].unit for known in measures.values()}))
    distance: Columns = {f"HD95 ({units})": (Key("hd95"), "{:.1f}".format)}
    described: list[tuple[str, tuple[str, ...], Columns]] = [
        (DICE_TITLE, ("row", "kind", "seeds"), _dice_columns(comparison, measures.values())),
        (NUMBERS_TITLE, ("row",), distance | NUMBERS),
        (COST_TITLE, ("row",), COSTS),
    ]
    return [
        Wide(
            title,
            comparison.note,
            (*heading, *columns),
            [(*head[: len(heading)], *_cells(measures[head[0]], columns)) for head in heads],
            words=min(2, len(heading)),
        )
        for title, heading, columns in described
    ]


def difference_table(comparison: Comparison, found: Sequence[Difference]) -> Wide:
    """How each row differs from its reference, on average and for each domain."""
    columns = _dice_columns(comparison, [difference.measures for difference in found], "{:+.3f}".format)
    rows = [(each.row, each.against, str(each.seeds), *_cells(each.measures, columns)) for each in found]
    return Wide(DIFFERENCE_TITLE, comparison.note, ("row", "against", "seeds", *columns), rows, words=2)


def _dice_columns(comparison: Comparison, measures: Iterable[Measures], form: Format = "{:.3f}".format) -> Columns:
    """The domains with their number of patients, then their mean."""
    keys = [Key("dice", domain) for domain in comparison.domains]
    known = list(measures)
    patients = [max((each[key].patients or 0 for each in known), default=0) for key in keys]
    columns = {f"{key.domain}\nn={count}": (key, form) for key, count in zip(keys, patients, strict=True)}
    return columns | {"mean": (Key("dice"), form)}


def _cells(measures: Measures, columns: Columns) -> list[str]:
    return [_cell(measures.get(key, Measure(math.nan)), form) for key, form in columns.values()]


def _cell(measure: Measure, form: Format, alone: str = "") -> str:
    """The number, and below it its interval, or what is said in the place of one."""
    if math.isnan(measure.value):
        return NOTHING
    text = form(measure.value)
    dash = " to " if text[0] in "+-" else NOTHING
    below = dash.join(map(form, measure.interval)) if measure.interval else alone
    return f"{text}\n{below}" if below else text


def matrix_table(matrix: Matrix, notes: str | None = None) -> RenderableType:
    """Stages as rows, domains as columns; scores of domains that a stage has not seen yet are dim.

    Args:
        matrix: the means, with the interval below each; a domain with one patient says so in its heading.
        notes: printed below the table, such as the reason why a patient stands in two splits.
    """
    several = any(count > 1 for count in matrix.patients)
    title = subject(matrix) + (", mean over patients and its 95 % interval" if several else "")
    counted = zip(matrix.domains, matrix.patients, strict=True)
    heading = ("after stage", *(f"{domain}\n{_count(patients)}" for domain, patients in counted))
    rows = [
        (f"{stage} {domain}", *(_mean_cell(matrix, stage, column) for column in range(len(matrix.domains))))
        for stage, domain in enumerate(matrix.domains[: len(matrix.values)])
    ]
    return rich_table(Wide(title, notes, heading, rows, words=1, staircase=True))


def _mean_cell(matrix: Matrix, stage: int, domain: int) -> str:
    """The mean, and its interval on a second line; a lone patient in a domain of several is marked there."""
    low, high = matrix.intervals[stage, domain].tolist()
    measure = Measure(float(matrix.values[stage, domain]), None if math.isnan(low) else Interval(low, high))
    return _cell(measure, number_format(matrix), "" if matrix.patients[domain] == 1 else _count(1))


def _count(patients: int) -> str:
    return {0: "not scored", 1: "n=1, no interval"}.get(patients, f"n={patients}")


def scores_table(scores: Sequence[Score]) -> RenderableType:
    """A row for each domain and class: number of patients, Dice and HD95, means over patients with their intervals."""
    rows: list[tuple[str, ...]] = []
    for domain, name, unit in dict.fromkeys((score.domain, score.name, score.unit) for score in scores):
        own = [score for score in scores if score.domain == domain]
        cells = []
        for metric, form in zip(METRICS, ("{:.3f}".format, "{:.1f}".format), strict=True):
            values = [*continual.patient_scores(own, metric, name).values()]
            mean = math.fsum(values) / len(values) if values else math.nan
            cells.append(_cell(Measure(mean, bootstrap.bootstrap_interval(values)), form, "no interval"))
        rows.append((domain, name, str(len({score.patient for score in own})), *cells, unit))
    return rich_table(Wide(SCORES_TITLE, None, ("domain", "class", "n", "Dice", "HD95", "unit"), rows, words=2))


def quantity(matrix: Matrix) -> str:
    """What the matrix holds, with its unit."""
    return "Dice" if matrix.metric == "dice" else f"HD95 ({matrix.unit})"


def subject(matrix: Matrix) -> str:
    """What the matrix holds, and of which classes."""
    return f"{quantity(matrix)}, {matrix.name or 'mean over classes'}"


def number_format(matrix: Matrix) -> Format:
    """How a number of the matrix is written."""
    return "{:.3f}".format if matrix.metric == "dice" else "{:.1f}".format


def rich_table(wide: Wide) -> RenderableType:
    """For the terminal; text is no markup.

    Where the terminal is too narrow, columns go on in further blocks below, each of which begins with the columns that
    hold words; the table is turned if it takes fewer blocks then. Nothing is cut, no number is broken, and a name only
    where it alone is wider than the terminal.
    """
    return _Blocks(wide)


@dataclass(frozen=True)
class _Blocks:
    wide: Wide

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The blocks; the title stands above the first, the note below the last."""
        heading, *rows = zip(self.wide.heading, *self.wide.rows, strict=True)
        turned = self.wide if self.wide.staircase else Wide(self.wide.title, self.wide.note, heading, rows, words=1)
        wide = min(self.wide, turned, key=lambda each: len(_blocks(each, options.max_width)))
        blocks = _blocks(wide, options.max_width)
        for block in blocks:
            table = Table(
                title=Text(wide.title) if block is blocks[0] else None,
                caption=Text(wide.note) if wide.note and block is blocks[-1] else None,
                show_lines=any("\n" in cell for row in wide.rows for cell in row),
                collapse_padding=True,
                pad_edge=False,
            )
            for column in block:
                words = column < wide.words
                least = 1 if words else _width(row[column] for row in wide.rows)  # names fold, numbers never do
                name = Text(wide.heading[column])
                table.add_column(name, justify="left" if words else "right", overflow="fold", min_width=least)
            for number, row in enumerate(wide.rows):
                seen = wide.words + number if wide.staircase else len(row)
                table.add_row(*(Text(row[column], style="dim" if column > seen else "") for column in block))
            yield from console.render(table, options.update(no_wrap=False, overflow="fold"))


def _blocks(wide: Wide, room: int) -> list[list[int]]:
    """Which columns stand side by side: the words, and as many others as ``room`` holds, one at least."""
    widths = [_width([name, *(row[column] for row in wide.rows)]) + 2 for column, name in enumerate(wide.heading)]
    blocks = [[*range(wide.words)]]
    for column in range(wide.words, len(widths)):
        if len(blocks[-1]) > wide.words and sum(widths[each] for each in (*blocks[-1], column)) > room:
            blocks.append([*range(wide.words)])
        blocks[-1].append(column)
    return blocks


def _width(cells: Iterable[str]) -> int:
    """Of the widest line, in columns of the terminal."""
    return max((cell_len(line) for cell in cells for line in cell.split("\n")), default=1)


def write_wide(path: Path, tables: Sequence[Wide]) -> None:
    """Write tables of the same rows, whose names come first in each, as one CSV with cells as printed.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    heading, *lines = (
        [cell.replace("\n", " ") for cell in itertools.chain(first, *(cells[1:] for cells in others))]
        for first, *others in zip(*([table.heading, *table.rows] for table in tables), strict=True)
    )
    files.write_csv(path, heading, lines, tables[0].note)


def write_measures(path: Path, comparison: Comparison, measures: Mapping[str, Measures]) -> None:
    """Write every number, a line each; what is undefined is an empty cell. Errors as in :func:`write_wide`."""
    lines = [
        [row.name, row.method, row.label, "bound" if row.bound else "", len(row.runs), *numbers]
        for row in comparison.rows
        for numbers in _lines(measures[row.name])
    ]
    heading = ["row", "method", "label", "kind", "seeds", "quantity", "domain", "class", "value", "low", "high"]
    files.write_csv(path, [*heading, "patients", "unit"], lines, comparison.note)


def write_differences(path: Path, comparison: Comparison, found: Iterable[Difference]) -> None:
    """Write every difference, a line each, as :func:`write_measures` does."""
    lines = [[each.row, each.against, each.seeds, *numbers] for each in found for numbers in _lines(each.measures)]
    heading = ["row", "against", "seeds", "quantity", "domain", "class", "difference", "low", "high"]
    files.write_csv(path, [*heading, "patients", "unit"], lines, comparison.note)


def _lines(measures: Measures) -> Iterator[list[object]]:
    """Quantity, domain, class, value, low, high, patients and unit of each number."""
    for key, known in measures.items():
        value = None if math.isnan(known.value) else known.value
        yield [*key, value, *(known.interval or (None, None)), known.patients, known.unit]
