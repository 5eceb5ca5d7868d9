import math
import random
import re
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.evaluation import continual, figures, measures, tables
from garda.evaluation.continual import Matrix
from garda.evaluation.measures import Comparison, FinishedRun, Row
from garda.evaluation.metrics import Score

SITES = ("first", "second", "third")
LONG = ("brightfield_gray_1024", "brightfield_purple_512", "fluorescence_small_256", "fluorescence_large_1024")
LONG += ("histology_pink_white_512", "histology_purple_yellow")


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


def title(table) -> str:
    return " ".join(" ".join(lines(table)).split("┏")[0].split())


def test_the_matrix_shows_means_intervals_and_numbers_of_patients():
    table = tables.matrix_table(make(TWO_AND_ONE))
    assert words(table) == [
        ["0 first", "0.850", "0.500", "–"],
        ["", "0.800–0.900", "", ""],
        ["1 second", "0.850", "0.500", "–"],
        ["", "0.800–0.900", "", ""],
    ]
    assert title(table) == "Dice, mean over classes, mean over patients and its 95 % interval"
    heading = "\n".join(lines(table)).split("0 first")[0]
    assert [heading.count(count) for count in ("n=2", "n=1, no interval", "not scored")] == [1, 1, 1]


def test_lone_patients_take_one_line_each():
    table = tables.matrix_table(make({"first": [(0.8, 2.0)], "third": [(0.7, 3.0)]}))
    assert words(table) == [["0 first", "0.800", "–", "0.700"], ["1 second", "0.800", "–", "0.700"]]
    assert title(table) == "Dice, mean over classes"
    assert words(tables.matrix_table(continual.matrix([], SITES, "dice"))) == []  # nothing scored


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
    assert title(table).startswith("HD95 (mm), mean over classes")
    assert words(table)[0] == ["0 first", "3.0", "11.0", "–"]


def test_domains_not_met_yet_are_dim_and_notes_are_no_markup():
    table = tables.matrix_table(make(TWO_AND_ONE), "one volunteer a site [bold]as published[/bold]")
    assert lines(table)[-1].strip() == "one volunteer a site [bold]as published[/bold]"
    printed = lines(table, color_system="standard", force_terminal=True)
    met, rest = next(line for line in printed if "0 first" in line).split("0.850")
    assert "\x1b[2m" not in met and "\x1b[2m" in rest.split("0.500")[0]
    last = next(line for line in printed if "1 second" in line)
    assert "\x1b[2m" not in last.split("0.500")[0]


def test_a_table_in_a_file_is_as_wide_as_it_must_be():
    printed, wide = StringIO(), tables.matrix_table(make(TWO_AND_ONE))
    Console(RichConsole(file=printed, width=20)).show(wide)
    assert "0.800–0.900" in printed.getvalue() and printed.getvalue().count("┏") == 1


def long_scores(stages: int = 6) -> list[Score]:
    drawn = random.Random(0)
    return [
        Score(stage, domain, f"p{patient}", "c", 0, "epithelium_nucleus", drawn.random(), 100 * drawn.random(), "px")
        for stage in range(stages)
        for domain in LONG
        for patient in range(3)
    ]


def long_comparison() -> list[tables.Wide]:
    runs = {seed: FinishedRun(long_scores(), 1234.0, 1e6, 2e6) for seed in (0, 1)}
    named = [("garda", ""), ("source_only", ""), ("supervised", ""), ("garda_paper", "more-images-2.5")]
    found = Comparison(LONG, ("epithelium_nucleus",), "a note", tuple(Row(*name, runs) for name in named))
    numbers = measures.measure(found)
    return [*tables.row_tables(found, numbers), tables.difference_table(found, measures.differences(found, numbers))]


LONG_TABLES = {
    "matrix": lambda: [tables.matrix_table(continual.matrix(long_scores(), LONG, "dice"), "a note")],
    "distances": lambda: [tables.matrix_table(continual.matrix(long_scores(), LONG, "hd95"))],
    "scores": lambda: [tables.scores_table(long_scores(1))],
    "comparison": lambda: [tables.rich_table(wide) for wide in long_comparison()],
}


@pytest.mark.parametrize("name", LONG_TABLES)
def test_at_80_columns_no_number_is_broken_and_no_name_cut(name: str):
    for table in LONG_TABLES[name]():
        narrow, wide = StringIO(), StringIO()
        as_used = {"highlight": False, "soft_wrap": True, "force_terminal": True, "color_system": None}
        Console(RichConsole(file=narrow, width=80, **as_used)).show(table)
        Console(RichConsole(file=wide)).show(table)
        assert max(map(len, narrow.getvalue().splitlines())) <= 80 and wide.getvalue().count("┏") == 1
        shown, expected = (re.findall(r"[^\s│┃━─┏┓┗┛└┘├┤┡┩╇┴┼┳┬╋╈┻┷]+", text.getvalue()) for text in (narrow, wide))
        assert set(shown) == set(expected)
        numbers, whole = (Counter(word for word in found if "." in word) for found in (shown, expected))
        assert {word for word in whole if numbers[word] < whole[word]} == set()
        assert shown.count("note") == expected.count("note") and shown.count("interval") == expected.count("interval")


def test_a_comparison_is_turned_where_that_takes_fewer_blocks():
    printed = lines(tables.rich_table(long_comparison()[0]), width=80)
    names = [re.match(r"│(\w*)", line)[1] for line in printed if line.startswith("│")]
    assert [name for name in names if name][:3] == ["kind", "seeds", LONG[0]]
    assert sum("┏" in line for line in printed) == 2


def test_a_name_wider_than_the_terminal_is_folded_and_its_numbers_are_whole():
    wide = tables.Wide("title", None, ("row", "n" * 90), [("r" * 90, "0.123\n0.100–0.200")], words=1)
    printed = lines(tables.rich_table(wide), width=40)
    text = "".join(printed)
    assert max(map(len, printed)) <= 40 and (text.count("n"), text.count("r")) == (90, 91)
    assert "0.123" in text and "0.100–0.200" in text


PERFECT = make({"first": [(1.0, 0.0)]}, "hd95", stages=1)


@pytest.mark.parametrize("matrix", [make(TWO_AND_ONE), make(TWO_AND_ONE, "hd95"), PERFECT])
def test_the_picture_is_a_png(tmp_path: Path, matrix: Matrix):
    path = tmp_path / "new folder" / "matrix.png"
    figures.write_png(path, figures.draw_matrix(matrix))
    height, width, _ = imread(path).shape
    assert width > height > 300
    assert [file.name for file in path.parent.iterdir()] == ["matrix.png"]
