"""The documents: generated pages are up to date, links lead somewhere, and they stay short."""

import csv
import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks import docs, result_tables, settings_page
from benchmarks.result_tables import DATA_SETS, DataSet
from garda.handover.settings import parse_settings
from garda.methods.registry import METHODS

ROOT = docs.ROOT
RESULTS = ROOT / "docs/results"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md")  # for whoever changes or updates garda, and as long as it takes
MOST_WORDS, MOST_README_LINES = 20_000, 110
CODE = re.compile(
    r"^ {0,3}(```|~~~).*?^ {0,3}\1[^\n]*$|^(?: {4}|\t)[^\n]*$|(`+)(?!`).+?(?<!`)\2(?!`)", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


def test_generated_pages_are_what_the_code_and_the_measurements_say(capsys):
    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_page_is_named_and_written_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "stale_pages", lambda root: {root / "docs/page.md": "new\n"})
    assert docs.main(["--check"]) == 1 and "docs/page.md: stale" in capsys.readouterr().out
    assert not (tmp_path / "docs/page.md").exists()
    assert docs.main([]) == 0 and (tmp_path / "docs/page.md").read_text() == "new\n"


def test_every_setting_of_every_method_has_its_row():
    page = settings_page.page()
    for name in METHODS:
        values = parse_settings(name, {}, "nowhere").model_dump()
        for key in keys({"": {"gate": values["gate"]}, name: values[name]}):
            assert re.search(rf"`{key}`[,:]? |^##+ (\S+\.)?{key}$", page, re.MULTILINE), f"{name}: {key}"


def test_a_default_that_differs_at_one_place_is_told():
    page = settings_page.page()
    assert "`generator.reconstruction.randomisation`: probability `0.9`" in page
    assert re.search(r"`shift` \|number≥0 \|`0.25`", page) and "shift `0.08`" in page


@pytest.mark.parametrize("data", DATA_SETS, ids=lambda data: data.name)
def test_the_tables_mean_is_that_of_the_matrices(data: DataSet):
    for row in result_tables.read_rows(RESULTS, data):
        finals = [result_tables.final(file) for file in result_tables.matrices(RESULTS, data.name, row["row"])]
        mean = statistics.mean(statistics.mean(dice.values()) for dice in finals)
        assert len(finals) == int(row["seeds"]) and f"{mean:.3f}" == row["mean"].split()[0], row["row"]


def test_a_changed_measurement_makes_the_pages_stale(tmp_path):
    for file in RESULTS.glob("*.csv"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert result_tables.page(tmp_path) == result_tables.page(RESULTS)
    table = tmp_path / "phantom_table.csv"
    with table.open(newline="", encoding="utf-8") as lines:
        mean = next(row for row in csv.DictReader(lines) if row["row"] == "garda")["mean"]
    table.write_text(table.read_text("utf-8").replace(mean, "0.123 0.1–0.2"), "utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "0.123 (0.1–0.2)" in result_tables.page(tmp_path)
    assert "0.123" in result_tables.splice(readme, tmp_path) and "0.123" not in readme


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    assert [*broken_links(page)] == []


def test_a_broken_link_is_found(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# One `two`, three\n\n# Twice\n\n# Twice\n\n```\n# No heading\n```\n")
    good = "[a](other.md) [b](other.md#one-two-three) [c](other.md#twice-1) [d](#here) `[e](no.md)`\n\n    [f](no.md)\n"
    page.write_text(f"# Here\n\n{good}\n[g](https://example.org/no.md)\n")
    assert [*broken_links(page)] == []
    page.write_text("[a](no.md) [b](other.md#no-heading) [c [d]](other.md#twice-2) ![e](no.png) [f](#nowhere)\n")
    assert [*broken_links(page)] == ["no.md", "other.md#no-heading", "other.md#twice-2", "no.png", "#nowhere"]


def test_all_documents_together_are_read_in_an_afternoon():
    words = {page.relative_to(ROOT).as_posix(): count_words(page) for page in PAGES if page.name not in BESIDE}
    assert sum(words.values()) <= MOST_WORDS, words


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MOST_README_LINES


def test_no_two_pages_are_taken_for_each_other():
    names = {page.stem.lower() for page in PAGES}
    assert [pair for pair in itertools.combinations(sorted(names), 2) if differ_by_a_letter(*pair)] == []
    assert differ_by_a_letter("method", "methods") and differ_by_a_letter("date", "data")
    assert not differ_by_a_letter("data", "date2") and not differ_by_a_letter("method", "method")


def keys(values: dict) -> Iterator[str]:
    """Names of the keys of nested settings that hold no others."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from keys(value)
        else:
            yield key


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page to files and headings that are not there; what is code or on another machine is no link."""
    for target in LINK.findall(CODE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            yield target


def anchors(page: Path) -> set[str]:
    """What headings of a page are called in links, as GitHub makes it."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    seen: Counter[str] = Counter()
    names: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", text, re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return names


def count_words(page: Path) -> int:
    """Words of a page; a number in a table is none."""
    return len(re.findall(r"\S*[^\W\d_]\S*", page.read_text("utf-8")))


def differ_by_a_letter(one: str, other: str) -> bool:
    """Whether one letter more, less or another makes one name the other."""
    if len(one) == len(other):
        return sum(a != b for a, b in zip(one, other, strict=True)) == 1
    short, long = sorted((one, other), key=len)
    return len(long) == len(short) + 1 and any(long[:i] + long[i + 1 :] == short for i in range(len(long)))
