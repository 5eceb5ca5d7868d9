"""The page of results and the README's table, from the measurements in ``docs/results``."""

from __future__ import annotations

import csv
import math
import re
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = "garda"
STARTS = ("source_only", "randomised")
PAPER = "garda_paper"
MARKS = ("<!-- results: made by `python -m benchmarks.docs` -->\n", "<!-- end of results -->")


@dataclass(frozen=True)
class DataSet:
    """Measurements of one pipeline.

    Attributes:
        name: of the pipeline; its files begin with it.
        title: what is segmented.
        note: what a reader has to know of it.
        structure: class that is told beside the mean; empty for none.
        site: domain whose seeds are told apart beside the mean; empty for none.
    """

    name: str
    title: str
    note: str
    structure: str = ""
    site: str = ""


DATA_SETS = (
    DataSet(
        "nuclei",
        "Cell nuclei",
        "Fluorescence to stain and bright field; one seed. Both fluorescent targets are read by the plain network, as"
        " `source_only` reads them, the stain by an adapter taught at zoom 0.5, and the bright field, where networks"
        " contradict each other, by the mixture, which `randomised` is.",
        site="he_stained_320",
    ),
    DataSet(
        "phantom",
        "Heart phantom",
        "One seed. Every target is read by the mixture, which `randomised` is: garda adds the plain network at the"
        " source.",
    ),
    DataSet("spinal_cord", "Spinal cord", "One seed and one test scan a site: a single site says little."),
)

HEAD = """
# Results

Whole-scan Dice, the mean over classes and then over the `n` test patients of a site, after the last stage;
`configs/small.yaml`, two CPU cores. In brackets: 95 % intervals over patients and, where there are several, seeds.
*To `garda`* is the paired difference, by patient and seed, of the seeds that both rows have, where both were run
together. Forgetting of `garda` is 0 by construction: what a site has learnt is never written to again.
Bounds see what a method may not, the targets' labels (`supervised`) or all sites' images at once (`joint`).

The commands that made the files of [docs/results](../results/README.md) stand there. Rows that are missing have not
been run with this version.
"""


def page(folder: Path) -> str:
    """All tables of results."""
    parts = [HEAD]
    for data in DATA_SETS:
        parts.append(
            f"\n## {data.title}\n\n{wrap(data.note)}\n{methods_table(folder, data)}\n{seeds_table(folder, data)}"
        )
    parts.append(f"\n## Choosing without labels\n\n{CHOICE}\n{choice_table(folder)}")
    return "".join(parts)


CHOICE = """What was chosen for each target by agreement over views, and what was the best of all candidates, on each
target's test scans, which the choice has not seen.
"""


def splice(readme: str, folder: Path) -> str:
    """The README with its table of results renewed; as it is where it has no place for one."""
    before, mark, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    return f"{before}{mark}\n{summary_table(folder)}\n{end}{after}" if end else readme


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    head, *body = (" |".join(cell.replace("|", "\\|") for cell in line).rstrip() for line in [heads, *rows])
    return "\n".join([head, "|".join(["---"] * len(heads)), *body]) + "\n"


def wrap(text: str) -> str:
    """A paragraph in lines of the usual length."""
    return "\n".join(textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)) + "\n" if text else ""


def read_rows(folder: Path, data: DataSet) -> list[dict[str, str]]:
    """A data set's rows of methods, variants left out, bounds last."""
    kept = [row for row in _read(folder / f"{data.name}_table.csv") if "(" not in row["row"]]
    return sorted(kept, key=lambda row: (row["kind"] == "bound", -int(row["seeds"]), -_number(row["mean"])))


def methods_table(folder: Path, data: DataSet) -> str:
    """A row a method: Dice of each site, their mean with its interval, and what else there is."""
    rows = read_rows(folder, data)
    sites = [name for name in rows[0] if " n=" in name]
    distance = next(name for name in rows[0] if name.startswith("HD95"))
    closed = any(row["gap closed"] != "–" for row in rows)
    differences = {
        line["row"]: line
        for line in _read(folder / f"{data.name}_differences.csv")
        if line["against"] == OURS and line["quantity"] == "dice" and not line["domain"] and not line["class"]
    }
    heads = ["method", "seeds", *(site.replace(" n=", ", n=") for site in sites), "mean", f"to `{OURS}`", distance]
    heads += ["forgetting", *(["gap closed"] if closed else []), *filter(None, [data.structure])]
    structures = _structures(folder, data)
    lines = []
    for row in rows:
        name = f"`{row['row']}`" + (" (bound)" if row["kind"] == "bound" else "")
        line = [name, row["seeds"], *(row[site].split()[0] for site in sites), _bracketed(row["mean"])]
        line += [_difference(differences.get(row["row"])), row[distance].split()[0], row["forgetting"]]
        line += [row["gap closed"]] if closed else []
        lines.append([*line, *([structures[row["row"]]] if data.structure else [])])
    return table(heads, lines)


def seeds_table(folder: Path, data: DataSet) -> str:
    """Seeds apart, of the methods that were run with several: means, and one site's Dice; nothing where none was."""
    rows = [row["row"] for row in read_rows(folder, data) if int(row["seeds"]) > 1]
    lines = []
    for name in rows:
        finals = [final(file) for file in matrices(folder, data.name, name)]
        line = [f"`{name}`", *(f"{statistics.mean(dice.values()):.3f}" for dice in finals)]
        lines.append(line + ([f"{dice[data.site]:.3f}" for dice in finals] if data.site else []))
    if not lines:
        return ""
    heads = ["mean, by seed", *(f"seed {number}" for number in range((len(lines[0]) - 1) // (2 if data.site else 1)))]
    if data.site:
        heads += [f"{data.site}, {head}" for head in heads[1:]]
    return table(heads, lines)


def summary_table(folder: Path) -> str:
    """The README's table: mean Dice over all sites of a few rows for each data set."""
    lines = []
    for data in DATA_SETS:
        rows = {row["row"]: row for row in read_rows(folder, data)}
        known = (*STARTS, OURS, PAPER)
        rivals = [row for name, row in rows.items() if name not in known and row["kind"] != "bound"]
        best = max(rivals, key=lambda row: _number(row["mean"]))
        cells = [_seeded(rows.get(name)) for name in (*STARTS, OURS, "supervised")]
        cells.insert(2, f"{_seeded(best)} `{best['row']}`")
        lines.append([data.title.lower(), *cells])
    return table(("mean Dice", *(f"`{name}`" for name in STARTS), "best rival", f"`{OURS}`", "`supervised`"), lines)


def choice_table(folder: Path) -> str:
    """Every choice, and by how much it falls short of the best candidate."""
    heads = ("site", "seed", "chosen", "Dice", "of the best", "short by")
    lines = [
        [
            line["domain"],
            line["seed"],
            line["chosen"],
            line["Dice of the chosen"],
            line["of the best"],
            line["short by"],
        ]
        for data in DATA_SETS
        for line in _read(folder / f"{data.name}_choice.csv")
    ]
    return table(heads, lines)


def matrices(folder: Path, pipeline: str, method: str) -> list[Path]:
    """A method's matrices, a file a seed."""
    files = [folder / f"{pipeline}_{method}_matrix.csv", *sorted(folder.glob(f"{pipeline}_{method}_seed*_matrix.csv"))]
    return [file for file in files if file.exists()]


def final(matrix: Path) -> dict[str, float]:
    """Dice of each site after the last stage."""
    last = _read(matrix)[-1]
    return {site: float(dice) for site, dice in last.items() if site not in ("stage", "note")}


def _structures(folder: Path, data: DataSet) -> dict[str, str]:
    """Mean Dice over the sites of one class, by row."""
    lines = _read(folder / f"{data.name}_comparison.csv") if data.structure else []
    return {
        line["row"]: f"{float(line['value']):.3f}"
        for line in lines
        if line["quantity"] == "dice" and not line["domain"] and line["class"] == data.structure
    }


def _difference(line: dict[str, str] | None) -> str:
    if line is None:
        return "–"
    bounds = f" ({_signed(line['low'])}…{_signed(line['high'])})" if line["low"] else ""
    return _signed(line["difference"]) + bounds


def _signed(number: str) -> str:
    return re.sub(r"^[+-](0\.000)$", r"\1", f"{float(number):+.3f}")


def _seeded(row: dict[str, str] | None) -> str:
    if row is None:
        return "–"
    return f"{_number(row['mean']):.3f}" + (" (one seed)" if row["seeds"] == "1" else "")


def _bracketed(cell: str) -> str:
    value, _, interval = cell.partition(" ")
    return f"{value} ({interval})" if interval else value


def _number(cell: str) -> float:
    return float(cell.split()[0]) if cell.split() else math.nan


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
