from __future__ import annotations

import math
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.evaluation import continual, figures, tables
from garda.evaluation.continual import Matrix
from garda.evaluation.metrics import Score

SITES = ("first", "second", "third")


def make(patients: dict[str, list[tuple[float, float]]], metric="dice", stages: int = 2) -> Matrix:
    scores = [
        Score(stage, domain, f"p{number}", "c", 0, "x", dice, hd95, "mm")
        for stage in range(stages)
        for domain, values in patients.items()
        for number, (dice, hd95) in enumerate(values)
    ]
    return continual.matrix(scores, SITES, metric)


TWO_AND_ONE = {"first": [(0.8, 2.0), (0.9, 4.0)], "second": [(0.5, 11.0)]}


def lines(table, width: int = 100, **options) -> list[str]:
    printed = StringIO()
    RichConsole(file=printed, width=width, **options).print(table)
    return printed.getvalue().splitlines()


def words(table, width: int = 100) -> list[list[str]]:
    """The cells of the table's body, line by line."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines(table, width) if "│" in line]


def test_the_table_shows_means_and_intervals():
    assert words(tables.matrix_table(make(TWO_AND_ONE))) == [
        ["0 first", "0.850", "0.500", "–"],
        ["", "0.800–0.900", "", ""],
        ["1 second", "0.850", "0.500", "–"],
        ["", "0.800–0.900", "", ""],
    ]


def test_the_heading_says_how_many_patients_there_are():
    table = tables.matrix_table(make(TWO_AND_ONE))
    assert str(table.title) == "Dice, mean over classes, mean over patients and its 95 % interval"
    heading = "\n".join(lines(table)).split("0 first")[0]
    assert [heading.count(count) for count in ("n=2", "n=1, no interval", "not scored")] == [1, 1, 1]


def test_lone_patients_take_one_line_each():
    table = tables.matrix_table(make({"first": [(0.8, 2.0)], "third": [(0.7, 3.0)]}))
    assert words(table) == [["0 first", "0.800", "–", "0.700"], ["1 second", "0.800", "–", "0.700"]]
    assert "interval" not in str(table.title)


def test_a_stage_with_one_of_two_patients_says_so():
    scores = [
        Score(stage, "first", patient, "c", 0, "x", dice, 1.0, "mm")
        for stage, patient, dice in [(0, "p", 0.8), (0, "q", math.nan), (1, "p", 0.8), (1, "q", 0.0)]
    ]
    assert words(tables.matrix_table(continual.matrix(scores, SITES, "dice")))[:2] == [
        ["0 first", "0.800", "–", "–"],
        ["", "n=1, no interval", "", ""],
    ]


def test_distances_have_their_unit_and_one_decimal():
    table = tables.matrix_table(make(TWO_AND_ONE, "hd95"))
    assert str(table.title).startswith("HD95 (mm), mean over classes")
    assert words(table)[0] == ["0 first", "3.0", "11.0", "–"]


def test_notes_stand_below_and_are_not_read_as_markup():
    table = tables.matrix_table(make(TWO_AND_ONE), "one volunteer a site [bold]as published[/bold]")
    assert lines(table)[-1].strip() == "one volunteer a site [bold]as published[/bold]"


def test_domains_not_met_yet_are_dim():
    printed = lines(tables.matrix_table(make(TWO_AND_ONE)), color_system="standard", force_terminal=True)
    row = next(line for line in printed if "0 first" in line)
    met, rest = row.split("0.850")
    assert "\x1b[2m" not in met
    assert "\x1b[2m" in rest.split("0.500")[0]


def test_a_table_in_a_file_is_as_wide_as_it_must_be():
    printed, wide = StringIO(), tables.matrix_table(make(TWO_AND_ONE))
    Console(RichConsole(file=printed, width=20)).show(wide)
    assert "0.800–0.900" in printed.getvalue()


def test_nothing_scored_is_a_table_without_rows():
    assert tables.matrix_table(continual.matrix([], SITES, "dice")).row_count == 0


@pytest.mark.parametrize("metric", ["dice", "hd95"])
def test_the_picture_is_a_png(tmp_path: Path, metric: str):
    path = tmp_path / "new folder" / "matrix.png"
    figures.draw_matrix(path, make(TWO_AND_ONE, metric))
    height, width, _ = imread(path).shape
    assert width > height > 300
    assert [file.name for file in path.parent.iterdir()] == ["matrix.png"]


def test_one_stage_and_perfect_distances_can_be_drawn(tmp_path: Path):
    figures.draw_matrix(tmp_path / "matrix.png", make({"first": [(1.0, 0.0)]}, "hd95", stages=1))
    assert (tmp_path / "matrix.png").stat().st_size > 1000
