"""Pages: they load nothing, name nobody, are refused where they cannot be made, and show what was measured."""

import csv
import io
import re
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from garda.core.errors import GardaError
from garda.core.files import read_json
from garda.evaluation import bootstrap, report_figures, thumbnails
from garda.evaluation.measures import Comparison, FinishedRun, Row
from garda.evaluation.metrics import Score
from garda.evaluation.thumbnails import Slice
from garda.handover import format, signing, verify
from garda.handover.setup import read_plan
from garda.runs import report, report_auditor, report_clinician, report_researcher
from garda.runs.report import Report
from garda.runs.report_clinician import ReadScan
from garda.safety import limits
from tests.support import cli, sites
from tests.support.errors import told
from tests.support.scans import OLD
from tests.support.sites import SITES


class Page(HTMLParser):
    """What a page refers to, and its text."""

    LEADS = ("src", "href", "xlink:href", "action", "data", "srcset", "poster", "background")

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []
        self.words = ""
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.targets += [value or "" for name, value in attrs if name in self.LEADS]
        self.targets += [url for _, value in attrs for url in re.findall(r"url\(([^)]*)\)", value or "")]

    def handle_data(self, data):
        self.words += data


def made(source: Path, reader: str, out: Path, *words: object) -> Page:
    assert cli.garda("report", source, "--for", reader, "--out", out, *words) == 0
    return Page(out)


def loads_nothing(file: Path) -> bool:
    page = Page(file)
    inside = all(target.startswith(("#", "data:image/")) for target in page.targets)
    text = re.sub(r"data:image/[^\"]*", "", file.read_text("utf-8"))
    return inside and not page.tags & {"script", "link", "iframe", "object", "embed", "base"} and "://" not in text


@pytest.fixture(scope="module")
def pages(finished: Path, pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, of one run."""
    folder = tmp_path_factory.mktemp("pages")
    scans = ("--data", pipeline.parent / "data", "--manifest", sites.manifest(pipeline, 1))
    found = {reader: folder / f"{reader}.html" for reader in ("clinician", "auditor", "researcher")}
    for reader, out in found.items():
        made(finished, reader, out, *(scans if reader == "clinician" else ()))
    return found


@pytest.mark.parametrize("reader", ["clinician", "auditor", "researcher"])
def test_a_page_is_one_file_that_loads_nothing(reader, pages):
    assert loads_nothing(pages[reader]) and pages[reader].stat().st_size < 1_000_000
    text = pages[reader].read_text("utf-8")
    assert "default-src 'none'" in text and "size:A4" in text and "width=device-width" in text


@pytest.mark.parametrize("leak", ['<img src="a.png">', '<a href="http://a.b">', "<link>", '<p style="x:url(/a)">'])
def test_a_page_that_loads_something_is_found(leak, pages, tmp_path):
    (tmp_path / "page.html").write_text(pages["auditor"].read_text("utf-8") + leak)
    assert not loads_nothing(tmp_path / "page.html")


def test_only_the_clinicians_page_holds_images_and_is_its_owners_alone(pages):
    image = "data:image/webp;base64,"
    texts = {reader: file.read_text("utf-8") for reader, file in pages.items()}
    assert [image in texts[reader] for reader in pages] == [True, False, False]
    assert stat.S_IMODE(pages["clinician"].stat().st_mode) == 0o600
    assert "stays in this hospital" in " ".join(Page(pages["clinician"]).words.split())


def test_image_free_pages_name_no_patient(finished, pages):
    rows = csv.DictReader(io.StringIO((finished / "scores.csv").read_text()))
    strange = {row[key] for row in rows for key in ("patient", "case")}  # pseudonyms, then the names themselves
    strange |= {f"{site}_{number:03d}" for site in SITES for number in range(4)}
    folder = pages["researcher"].with_suffix("")
    written = [pages["auditor"], pages["researcher"], *folder.iterdir()]
    assert len(strange) > 12 and len(written) > 10
    for file in written:
        assert [name for name in strange if name.encode() in file.read_bytes()] == [], file


def test_a_clinician_finds_the_scan_by_its_line_and_no_name(pages, pipeline):
    words = Page(pages["clinician"]).words
    rows = csv.DictReader(io.StringIO(sites.manifest(pipeline, 1).read_text()))
    line = 2 + [row["split"] for row in rows].index("test")
    assert "Volumes in ml" in words and f"{SITES[1]}.csv, line {line}" in words and f"{SITES[1]}_003" not in words


def test_a_site_without_drawings_is_shown_and_never_green(finished, pipeline, tmp_path):
    manifest = tmp_path / "elsewhere.csv"
    with sites.manifest(pipeline, 2).open() as lines:
        rows = [{**row, "label": ""} for row in csv.DictReader(lines)]
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if "sha" not in name and "bytes" not in name])
        writer.writeheader()
        writer.writerows({name: row[name] for name in writer.fieldnames} for row in rows)
    out = tmp_path / "page.html"
    words = made(finished, "clinician", out, "--data", pipeline.parent / "data", "--manifest", manifest).words
    assert "nobody has drawn" in words and "never learnt" in words and "Dashed" not in words


def scan(patient: str, dice: float, unsure: float = 0.0) -> ReadScan:
    scores = [] if dice != dice else [Score(0, "", patient, "c", 0, "organ", dice, 1.0, "mm")]
    return ReadScan("m.csv, line 2", patient, scores, [], "ml", unsure, [])


def test_the_worst_patients_are_shown_and_others_at_random():
    scans = [scan(f"p{number}", number / 20) for number in range(20)] + [scan("p3", 0.99)]
    worst, others = report_clinician.choose(scans)
    assert [each.patient for each in worst] == [f"p{number}" for number in range(6)]
    assert len({each.patient for each in others} - {each.patient for each in worst}) == 6
    doubting = [scan(f"p{number}", float("nan"), number / 10) for number in range(9)]
    assert report_clinician.choose(doubting)[0][0].patient == "p8"


@pytest.mark.parametrize(
    ("values", "decision", "light"),
    [
        ([0.9] * 5, "promote", "green"),
        ([0.9] * 5, "hold", "amber"),
        ([0.9] * 5, "refuse", "red"),
        ([0.9] * 4, "promote", "amber"),
        ([0.9] * 4 + [0.4], "promote", "amber"),
        ([0.4] * 5, "promote", "red"),
        ([], "promote", "amber"),
    ],
)
def test_the_light(values, decision, light):
    assert report_clinician.judge("b", {"organ": values}, decision, len(values))[0] == light


def test_slices_are_cut_around_what_was_drawn_and_stay_small():
    rng = np.random.default_rng(0)
    grey = rng.random((9, 300, 300), np.float32)  # noise, which no picture format makes small
    drawn, found = np.zeros((2, 9, 300, 300), np.int64)
    drawn[2:8, 40:200, 40:200] = found[3:8, 50:210, 40:200] = 1
    slices = thumbnails.cut_slices(grey, found, drawn, grey < 0.01, (5.0, 2.0, 1.0))
    assert [each.number for each in slices] == [2, 3, 4, 6, 7] and slices[0].grey.shape == (252, 240)
    assert {each.aspect for each in slices} == {2.0}
    for shown in (slices[0], Slice(0, grey[0, :9, :9], found[0, :9, :9] + 1, None, grey[0, :9, :9] < 0, 1.0)):
        data = thumbnails.base64.b64decode(thumbnails.draw(shown))
        assert len(data) <= thumbnails.MOST_BYTES and Image.open(io.BytesIO(data)).format == "WEBP"


def test_an_auditor_reads_the_digest_the_chain_and_both_limits(finished, pages):
    with verify.open_package(finished) as found:
        pass
    words = Page(pages["auditor"]).words
    assert " ".join(words.split("to read out")[1].split()[:16]).replace(" ", "") == found.digest
    assert all(f"{entry.stage} {entry.domain}" in words for entry in found.entries)
    assert words.count("not signed") == 3 and words.count("No audit stands in the ledger") == 3
    assert "What all this does not show" in words


def test_who_has_signed_stands_in_the_chain(finished, tmp_path):
    _, digits = signing.make_keys(tmp_path / "a.key")
    with verify.open_package(finished) as found:
        pass
    signed = signing.Signature(line=1, key=digits, signature="0" * 128)
    text = report_auditor.make_page(verify.Verified(**{**vars(found), "signatures": (signed,)}))
    assert digits[:8] in text and text.count("not signed") == 2 and "was not asked" in text


def test_figures_of_an_audit_have_intervals_or_say_how_few_patients():
    audit = {"domain": "b", "members": 4, "outsiders": 9, "copies": [], "outliers": [], "membership": []}
    audit |= {"no_figure": "4 members, fewer than 5", "bytes_kept": 1, "bytes_seen": 1, "findings": []}
    assert report_auditor._audit(audit, 5)["none"] == "no figure: 4 of 5 patients"
    copies = {
        "space": "pixel",
        "share": 0.02,
        "interval": (0.01, 0.04),
        "chance": 0.03,
        "generated": 512,
        "patients": 5,
    }
    (figure,) = report_auditor._audit(audit | {"no_figure": None, "copies": [copies]}, 5)["figures"]
    assert figure["text"] == "2.0% (1.0% to 4.0%), by chance up to 3.0%" and figure["bar"]["ticks"][1]["x"] == 30.0
    assert "another version" in report_auditor._audit({"strange": 1}, 5)["none"]


@pytest.mark.parametrize("name", ["slices", "blank", "noise", "recognition", "replay", "diversity", "foreground"])
@pytest.mark.parametrize("value", [-1e3, 1e3])
def test_the_limit_that_a_check_has_not_kept_comes_from_the_settings(name, value):
    settings = limits.GateSettings(blank=(0.3, 0.6))
    of, kind = (limits.above, limits.at_most) if name in ("blank", "noise") else (limits.share_of, limits.at_least)
    both = of(0.4, getattr(settings, name))
    assert limits.both_limits(kind(name, "b", value, both, ""), settings) == pytest.approx(both)
    held = kind(name, "b", value, both, "")
    assert limits.both_limits(held, None).count(None) == 1


def test_an_old_package_has_a_page(tmp_path):
    assert "tse_1p5t" in made(OLD / "garda.zip", "auditor", tmp_path / "old.html").words
    assert loads_nothing(tmp_path / "old.html")


def test_a_hop_leaves_the_auditors_page_beside_its_package(run_of, pipeline, tmp_path):
    source, out = format.find_stage(run_of("adabn"), 0), tmp_path / "b.zip"
    words = ("adapt", source, sites.manifest(pipeline, 1), "--data", pipeline.parent / "data", "--out", out)
    assert cli.garda(*words) == 0 and {file.name for file in tmp_path.iterdir()} == {"b.zip", "b.zip.html"}
    with verify.open_package(out) as found:
        assert found.digest[:4] in Page(tmp_path / "b.zip.html").words


def test_every_picture_of_a_run_lies_beside_it_in_three_forms_and_every_table_for_latex(finished, pages):
    folder = pages["researcher"].with_suffix("")
    files = {file.name for file in folder.iterdir()}
    for name in ("matrices", "slopes-garda", "differences", "curves", "seconds"):
        assert {f"{name}.{form}" for form in ("svg", "pdf", "csv")} <= files, name
    assert {"dice.tex", "numbers.tex", "costs.tex", "settings.tex"} <= files
    rows = list(csv.DictReader(io.StringIO((folder / "matrices.csv").read_text())))
    assert len(rows) == 9 and rows[0]["domain"] == SITES[0]
    seconds = sum(float(row["seconds"]) for row in csv.DictReader(io.StringIO((folder / "seconds.csv").read_text())))
    assert seconds == pytest.approx(sum(read_json(finished / "seconds.json").values()))
    text = (folder / "settings.tex").read_text()
    assert r"source.steps" in text and f"& {read_plan(finished).settings['source']['steps']} " in text


def row(name: str, *seeds: float) -> Row:
    """Two patients of two domains whose Dice falls at the source, and rises at the target by 0.1 and 0.3."""
    runs = {}
    for seed, start in enumerate(seeds):
        rise = [(0, "a", 0.0), (0, "b", 0.0), (1, "a", -0.1), (1, "b", 0.2)]
        scores = [
            Score(
                stage, domain, patient, "c", seed, "x", start + up + (more if stage and domain == "b" else 0), 1, "mm"
            )
            for stage, domain, up in rise
            for patient, more in (("p", -0.1), ("q", 0.1))
        ]
        runs[seed] = FinishedRun(scores, 1.0, 1.0, 1.0)
    return Row(name, "", runs)


def test_patients_are_paired_before_and_after_over_seeds():
    two = Comparison(("a", "b"), ("x",), None, (row("garda", 0.5, 0.6),))
    assert report_figures.before_and_after(two.rows[0], "b", 0, 1) == pytest.approx(
        np.array([[0.55, 0.65], [0.55, 0.85]])
    )
    gains = report_figures.draw_gains(two, two.rows[0]).rows
    assert [(line[1], round(line[2], 3), line[5]) for line in gains] == [("a", -0.1, 2), ("b", 0.2, 2)]
    axes = report_figures.draw_curves(two).figure.axes[0]
    assert len(axes.collections) == 1  # a band over the seeds
    one = Comparison(("a", "b"), ("x",), None, (row("garda", 0.5),))
    assert len(report_figures.draw_curves(one).figure.axes[0].collections) == 0
    assert bootstrap.estimate([np.array([[0.1, 0.3]])]).mean == pytest.approx(0.2)


def test_losses_are_read_from_the_journal_whatever_else_it_holds(tmp_path):
    line = '{"kind": "losses", "values": {"stage": "0-a", "part": "x", "step": %d, "values": {"dice": %s}}}\n'
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        lines = [line % (step, step + seed) for step in (0, 2, 4 + seed)] + ['{"kind": "start"}\n', '{"kind": "los']
        (tmp_path / str(seed) / "tracking.jsonl").write_text("".join(lines))
    ((name, (steps, values)),) = report_researcher._losses([tmp_path / "0", tmp_path / "1"]).items()
    assert name == "0-a x dice" and steps.tolist() == [0, 2] and values.tolist() == [[0, 2], [1, 3]]


def refusals() -> Iterator[tuple[dict, str, str]]:
    yield {"reader": "clinician"}, "--data DATA", ""
    yield {"reader": "clinician", "data": Path("d"), "manifest": Path("m")}, "outside of", "run/page.html"
    yield {"reader": "auditor", "data": Path("d")}, "reads no scan", ""
    yield {"reader": "researcher", "source": OLD / "garda.zip"}, "--for auditor", ""
    yield {"reader": "researcher", "expected": "0" * 64}, "asks no signature", ""
    yield {"reader": "auditor", "expected": "0" * 64}, "not the expected", ""
    yield {"reader": "auditor"}, "ends with .html", "page.pdf"
    yield {"reader": "auditor"}, "exists already", "there.html"
    yield {"reader": "auditor", "source": Path("comparison")}, "is a comparison", ""


@pytest.mark.parametrize(("changes", "words", "out"), refusals())
def test_what_cannot_be_written_is_refused_in_one_line(changes, words, out, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "comparison").mkdir()
    for name in ("run/plan.json", "there.html", "comparison/comparison.json"):
        (tmp_path / name).touch()
    before = {*tmp_path.rglob("*")}
    asked = {"source": finished, "out": tmp_path / (out or "page.html"), **changes}
    line = told(GardaError, report.write_report, Report(**asked), sites.quiet())
    assert words in line and "\n" not in line and {*tmp_path.rglob("*")} == before
