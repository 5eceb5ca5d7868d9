"""Comparing methods: which runs are made, which are refused, and what the tables say of those that are finished."""

import csv
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from mlflow import MlflowClient
from rich.console import Console as RichConsole

from garda.core import pseudonyms
from garda.core.console import Console
from garda.core.errors import ConfigError, GardaError, Interrupted, Problems, RunFolderError, TrainingError
from garda.core.files import read_json, write_json
from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.evaluation import bootstrap, figures, metrics
from garda.evaluation.metrics import Score
from garda.methods.registry import METHODS
from garda.runs import compare, compare_plan
from garda.runs.compare_plan import Request
from garda.runs.context import Run
from tests.support.cli import garda
from tests.support.sites import SITES

KEY = Pseudonyms(b"a key for tests")
FLAT = [[0.9, 0.2, 0.4], [0.9, 0.2, 0.4], [0.9, 0.2, 0.4]]
LEARNS = [[0.9, 0.2, 0.4], [0.8, 0.6, 0.4], [0.7, 0.6, 0.4]]
BEST = [[0.9, 0.2, 0.4], [0.9, 0.8, 0.4], [0.9, 0.8, 0.41]]
FAST = {"tent": {"steps": 2}}
SPREAD = (-0.05, 0.05)  # two patients, around each mean


@pytest.fixture
def bare(pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline and its manifests, without scans, for tests that change it."""
    shutil.copytree(pipeline.parent, tmp_path / "bare", ignore=shutil.ignore_patterns("*.nii.gz"))
    return tmp_path / "bare" / pipeline.name


@pytest.fixture
def request_(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """Of a folder without scans, so that whatever would be learnt or scored fails; nothing is drawn."""
    monkeypatch.setattr(compare, "figures", Mock(figures))
    return Request(pipeline, tmp_path / "no scans", tmp_path / "out", methods=["source_only"])


def tell(request: Request) -> str:
    """What a comparison prints."""
    printed = StringIO()
    compare.compare(request, Console(RichConsole(file=printed, width=200)), Stopping(), KEY)
    return printed.getvalue()


def rows(request: Request, name: str, **wanted: str) -> list[dict[str, str]]:
    """Lines of a file that a comparison has written."""
    with (request.out / name).open(newline="") as file:
        return [row for row in csv.DictReader(file) if wanted.items() <= row.items()]


def find(request: Request, name: str, **wanted: str) -> dict[str, str]:
    (found,) = rows(request, name, **wanted)
    return found


def fill(
    request: Request,
    method: str,
    dice: Sequence[Sequence[float]],
    seed: int = 0,
    spread: Sequence[float] = SPREAD,
    **changes: object,
) -> Path:
    """Write what a finished run leaves: one class, a stage a line of ``dice`` and a domain a column."""
    common, (run,) = compare_plan.plan_runs(replace(request, methods=[method], seeds=[seed], **changes), KEY)  # type: ignore[arg-type]
    write_json(run.folder / "plan.json", run.plan.model_dump(mode="json"))
    scores = [
        Score(stage, site, f"{site}{patient}", "c", seed, "myocardium", mean + more, 10 * mean, "mm")
        for stage, means in enumerate(dice)
        for site, mean in zip(SITES, means, strict=True)
        for patient, more in enumerate(spread)
    ]
    metrics.write_scores(run.folder / "scores.csv", scores)
    write_json(run.folder / "seconds.json", {"0-segmenter": 10.5, "1-segmenter": 2.0 * seed})
    for stage, count in ((0, 1000), (2, 1600)):
        folder = run.folder / "stages" / f"{stage}-{SITES[stage]}" / "package"
        folder.mkdir(parents=True)
        (folder / "segmenter.safetensors").write_bytes(bytes(count))
    write_json(request.out / "comparison.json", common.model_dump(mode="json"))
    return run.folder


def test_the_table_of_finished_runs_needs_no_scan(request_):
    for method, dice, seed in (("source_only", FLAT, 0), ("cotta", LEARNS, 0), ("cotta", LEARNS, 1)):
        fill(request_, method, dice, seed=seed)
    fill(request_, "supervised", BEST)
    told = tell(request_)
    cotta = find(request_, "table.csv", row="cotta")
    assert ", ".join(cotta) == (
        "row, kind, seeds, bssfp_1p5t n=2, tse_1p5t n=2, lge_3t n=2, mean, HD95 (mm), "
        "forgetting, backward, forward, plasticity, gap closed, training, kept a domain, kept in all"
    )
    assert cotta.pop("mean").startswith("0.567 0.5")
    assert ", ".join(cotta.values()) == (  # of the gap of 0.6 at the first target 67 % are closed; the second has none
        "cotta, , 2, 0.700 0.650–0.750, 0.600 0.550–0.650, 0.400 0.350–0.450, 5.7 5.7–5.7, "
        "0.100, -0.100, +0.000, +0.200, 67%, 12 s, 300 bytes, 1.6 kB"
    )
    kinds = {row["row"]: (row["kind"], row["gap closed"]) for row in rows(request_, "table.csv")}
    assert list(kinds.items()) == [
        ("cotta", ("", "67%")),
        ("source_only", ("", "0%")),
        ("supervised", ("bound", "100%")),
    ]
    assert "source_only seed 0: finished before" in told
    for words in ("0.650–0.750", "plasticity", "300 bytes", "Dice less that of another row"):
        assert words in told
    assert "chosen without labels" not in told and not (request_.out / "choice.csv").exists()
    against = {row["row"]: row["against"] for row in rows(request_, "differences.csv")}
    assert against == {"cotta": "source_only", "source_only": "cotta", "supervised": "cotta"}
    pair = find(request_, "differences.csv", row="cotta", domain="", **{"class": ""})
    assert [float(pair[name]) for name in ("difference", "low", "high")] == pytest.approx([0.2 / 3] * 3)


def test_every_number_is_a_line_with_its_interval(request_):
    fill(request_, "source_only", FLAT)
    tell(request_)
    mean = find(request_, "comparison.csv", quantity="dice", domain="", **{"class": ""})
    found = bootstrap.estimate([np.array([[mean + more for more in SPREAD]]) for mean in FLAT[-1]])
    assert (float(mean["low"]), float(mean["high"])) == pytest.approx(found.interval)
    assert float(mean["value"]) == pytest.approx(0.5) and mean["patients"] == "6"
    grey = find(request_, "comparison.csv", quantity="hd95", domain=SITES[1], **{"class": "myocardium"})
    assert (float(grey["value"]), grey["unit"], grey["patients"]) == (pytest.approx(2.0), "mm", "2")
    absent = find(request_, "comparison.csv", quantity="dice", domain=SITES[1], **{"class": "left_ventricle"})
    assert (absent["value"], absent["low"], absent["patients"]) == ("", "", "0")
    assert find(request_, "comparison.csv", quantity="gap_closed", domain="")["value"] == ""
    assert find(request_, "table.csv", row="source_only")["gap closed"] == "–"


def test_a_run_under_way_is_no_row_and_what_is_gone_or_was_never_noted_is_unknown(request_):
    fill(request_, "tent", LEARNS[:2])
    folder = fill(request_, "source_only", FLAT)
    (folder / "seconds.json").unlink()
    shutil.rmtree(folder / "stages" / f"2-{SITES[2]}" / "package")
    told = tell(request_)
    (row,) = rows(request_, "table.csv")
    assert [row[name] for name in ("row", "training", "kept a domain", "kept in all")] == ["source_only", "–", "–", "–"]
    assert rows(request_, "differences.csv") == [] and "Dice less that of another row" not in told


def test_pixels_and_millimetres_are_not_averaged_and_lone_patients_have_no_interval(request_):
    scores = fill(request_, "source_only", FLAT, spread=[0.0]) / "scores.csv"
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(line.replace(",mm", ",px") if SITES[0] in line else line for line in lines))
    tell(request_)
    row = find(request_, "table.csv", row="source_only")
    assert (row["bssfp_1p5t n=1"], row["mean"], row["HD95 (mm/px)"]) == ("0.900", "0.500", "–")
    assert find(request_, "comparison.csv", quantity="hd95", domain=SITES[0], **{"class": ""})["unit"] == "px"


def test_only_seeds_that_both_have_are_compared(request_):
    for method, dice, seed in (("source_only", FLAT, 0), ("cotta", LEARNS, 0), ("tent", BEST, 1)):
        fill(request_, method, dice, seed=seed)
    tell(request_)
    against = {row["row"]: row["against"] for row in rows(request_, "differences.csv")}
    assert against == {"cotta": "source_only", "source_only": "cotta"}
    fill(request_, "cotta", BEST, seed=1)
    tell(replace(request_, against="source_only"))
    assert {(row["row"], row["seeds"]) for row in rows(request_, "differences.csv")} == {("cotta", "1"), ("tent", "0")}
    first = find(request_, "differences.csv", row="cotta", domain=SITES[1], **{"class": ""})
    assert float(first["difference"]) == pytest.approx(0.4)
    nothing = find(request_, "differences.csv", row="tent", domain="", **{"class": ""})
    assert (nothing["difference"], nothing["patients"]) == ("", "0")


def test_the_note_stands_with_every_table(request_, bare):
    with (bare.parent / "data" / "manifests" / "task.yaml").open("a") as file:
        file.write("same_patient_in_splits: one [bold]volunteer[/bold] a site\n")
    request = replace(request_, pipeline=bare)
    fill(request, "source_only", FLAT)
    fill(request, "tent", LEARNS)
    told = tell(request)
    assert told.count("one [bold]volunteer[/bold] a site") == 4
    for name in ("table.csv", "comparison.csv", "differences.csv"):
        assert {row["note"] for row in rows(request_, name)} == {"one [bold]volunteer[/bold] a site"}


def test_what_choices_cost_is_told_run_by_run_with_mean_and_worst(request_):
    folder = fill(request_, "garda", BEST)
    (folder / "candidates.csv").write_text(
        "stage,domain,candidate,chosen,dice,agreement\n"
        "1,lge_3t,plain,0,0.81,1\n1,lge_3t,mixture,1,0.80,2\n2,tse_1p5t,plain,1,0.40,1\n2,tse_1p5t,curves,0,0.37,0\n"
    )
    told = tell(replace(request_, methods=["garda"]))
    assert (request_.out / "choice.csv").read_text().splitlines() == [
        "row,seed,domain,candidates,chosen,Dice of the chosen,of the best,short by",
        "garda,0,lge_3t,2,mixture,0.800,0.810,0.010",
        "garda,0,tse_1p5t,2,plain,0.400,0.400,0.000",
    ]
    assert "Dice of the reading chosen without labels" in told
    assert re.search(r"garda\W+2\W+0\.005\W+0\.010", told)  # choices, their mean and their worst


@pytest.mark.parametrize(
    ("rest", "what"), [("0,0.80", "expected one chosen candidate"), ("1", "is damaged"), ("1,1.80", "is damaged")]
)
def test_a_damaged_table_of_candidates_is_one_line(request_, rest, what):
    folder = fill(request_, "garda", BEST)
    (folder / "candidates.csv").write_text(f"stage,domain,candidate,chosen,dice\n1,lge_3t,plain,{rest}\n")
    with pytest.raises(RunFolderError, match=what):
        tell(replace(request_, methods=["garda"]))


def test_judging_reaches_the_runs(request_, monkeypatch):
    learn = Mock()
    monkeypatch.setattr(compare.run, "run_sequence", learn)
    for judging in (True, False):
        tell(replace(request_, judging=judging))
        assert learn.call_args.args[0].judging is judging


def test_there_is_a_heat_map_for_each_row_and_a_panel_for_each_domain(request_, tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 50)
    for method, dice in (("source_only", FLAT), ("supervised", BEST), ("tent", LEARNS)):
        fill(request_, method, dice)
    comparison = compare.gather(request_.out, compare_plan.plan_runs(request_, KEY)[0])
    sizes = []
    for rows in (1, 3):
        for draw in (figures.draw_matrices, figures.draw_curves):
            drawn = draw(replace(comparison, rows=comparison.rows[:rows], note="a note"))
            figures.write_png(tmp_path / "picture.png", drawn)
            height, width, _ = imread(tmp_path / "picture.png").shape
            sizes.append(height * width)
    assert sizes[0] < sizes[2] and sizes[1] == sizes[3] > 10_000


def test_a_variant_is_a_row_of_its_own_whose_seeds_have_one_plan(request_):
    fill(request_, "source_only", FLAT)
    folder = fill(request_, "tent", LEARNS, label="fast-1.5", changes=FAST)
    tell(request_)
    assert [row["row"] for row in rows(request_, "table.csv")] == ["source_only", "tent (fast-1.5)"]
    row = find(request_, "comparison.csv", row="tent (fast-1.5)", quantity="forgetting")
    assert (row["method"], row["label"]) == ("tent", "fast-1.5")
    again = replace(request_, methods=["tent"], label="fast-1.5", changes={"tent": {"steps": 3}})
    for seed, what in (
        (1, "was run with other settings than tent (fast-1.5) seed 1; give a --label, or a new --out"),
        (0, "the folder holds another plan, settings.tent.steps differs; undo the change, or give a new --out folder"),
    ):
        assert refused(replace(again, seeds=[seed])) == f"{folder}/plan.json: {what}"


def refused(request: Request) -> str:
    """The one line of a refusal; nothing has been written."""
    before = sorted(request.out.rglob("*"))
    with pytest.raises(GardaError) as caught:
        tell(request)
    assert sorted(request.out.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"methods": ["source_only", "sorcery"]}, "--methods: unknown method 'sorcery'; use one of adabn, advent, "),
        ({"label": "a b", "changes": FAST}, "--label: expected letters, digits and _.-, got 'a b'; rename"),
        ({"changes": FAST}, "--set: makes a variant that has no name; give one with --label"),
        ({"label": "fast"}, "--label: names a variant that changes nothing; give the change with --set KEY=VALUE"),
        ({"against": "tent"}, "--against: no row 'tent'; use one of source_only"),
        ({"label": "fast", "changes": FAST}, "--set: changes nothing that source_only reads, or sets what is set"),
        ({"label": "fast", "changes": {"tent": {"stepz": 2}}}, "--set: unknown key 'tent.stepz'; did you mean 'steps'"),
    ],
)
def test_words_that_say_nothing_are_refused(request_, asked, error):
    assert refused(replace(request_, **asked)).startswith(error)


@pytest.mark.parametrize("text", ["", "a", "0,", "0,,1", "-1", "1.5", str(2**31), "0;1"])
def test_seeds_are_whole_numbers(text):
    with pytest.raises(ConfigError, match=f"^--seeds: expected whole numbers from 0, got {text!r}; write for example"):
        compare_plan.parse_seeds(text)


def test_all_methods_and_the_pipelines_seed_unless_told_otherwise(request_):
    assert (compare_plan.parse_seeds(None), compare_plan.parse_seeds("0, 2,1")) == (None, [0, 2, 1])
    assert (compare_plan.parse_methods(None), compare_plan.parse_methods("a, b")) == (None, ["a", "b"])
    _, planned = compare_plan.plan_runs(replace(request_, methods=None), KEY)
    assert [run.name for run in planned] == [f"{method} seed 0" for method in METHODS]
    _, planned = compare_plan.plan_runs(replace(request_, methods=["tent", "joint", "tent"], seeds=[3, 1, 3]), KEY)
    assert [run.name for run in planned] == ["tent seed 3", "joint seed 3", "tent seed 1", "joint seed 1"]


def test_another_folder_is_refused(request_):
    request_.out.mkdir()
    (request_.out / "letter.txt").touch()
    for out in (request_.out, request_.out / "letter.txt"):
        assert refused(replace(request_, out=out)).startswith(f"{out}: holds something that is not a comparison")


def change_config(request: Request, folder: Path, old: str, new: str) -> Path:
    """A copy of the pipeline's configuration with a change."""
    text = (request.pipeline.parent / "tiny.yaml").read_text()
    (folder / "other.yaml").write_text(text.replace(old, new))
    return folder / "other.yaml"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("steps: 5", "steps: 6", "settings.source"), ("prior_width: 8", "prior_width: 16", "settings.generator")],
)
def test_other_shared_settings_are_another_comparison(request_, tmp_path, old, new, key):
    fill(request_, "source_only", FLAT)
    assert refused(replace(request_, config=change_config(request_, tmp_path, old, new))) == (
        f"{request_.out / 'comparison.json'}: the folder holds another comparison, {key} differs; "
        "undo the change, or give a new --out folder"
    )


def test_foreign_runs_and_damaged_files_are_refused(request_):
    folder, file = fill(request_, "source_only", FLAT), request_.out / "comparison.json"
    plan = read_json(folder / "plan.json")
    foreign = replace(request_, methods=["tent"])
    for key in ("name", "method"):
        write_json(folder / "plan.json", plan | {key: "gone"})
        assert refused(foreign) == f"{folder}: is a run of another comparison, {key} differs; move it elsewhere"
    write_json(folder / "plan.json", plan)
    write_json(folder / "seconds.json", ["soon"])
    assert refused(foreign) == f"{folder}/seconds.json: is damaged; delete it, the time is then unknown"
    write_json(file, {"name": "tiny"})
    assert refused(request_).startswith(f"{file}: is damaged; ")


@pytest.mark.parametrize("methods", [["source_only", "garda"], ["garda", "source_only"]])
def test_the_order_of_methods_is_no_matter(request_, methods):
    """Although the plan of a method without a generator does not name the generator's settings."""
    for method in methods:
        fill(request_, method, FLAT)
    tell(replace(request_, methods=list(reversed(methods))))
    assert len(rows(request_, "table.csv")) == 2


def test_configurations_may_differ_in_what_one_method_reads(request_, tmp_path):
    fill(request_, "source_only", FLAT)
    other = change_config(request_, tmp_path, "joint: {steps: 4", "joint: {steps: 5")
    fill(request_, "joint", BEST, config=other)
    files = (request_.pipeline.parent / "tiny.yaml", other)
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert read_json(request_.out / "comparison.json")["configs"] == digests
    again = replace(request_, methods=["joint"], seeds=[1])
    assert "was run with other settings than joint seed 1" in refused(again)


def test_an_oracle_without_labels_is_refused_before_anything_is_learnt(request_, bare):
    manifest = bare.parent / "data" / "manifests" / f"{SITES[1]}.csv"
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"label": ""} for row in rows)
    request = replace(request_, pipeline=bare, methods=["source_only", "supervised"])
    assert "supervised needs a label for one training case at least" in refused(request)
    _, planned = compare_plan.plan_runs(replace(request, methods=None), KEY)
    assert {run.plan.method for run in planned} == {*METHODS} - {"supervised"}


def test_a_failed_run_costs_no_other_its_row(request_, monkeypatch):
    def learn(run: Run) -> None:
        if run.sequence.method != "tent":
            raise TrainingError("1-site-segmenter", "the loss is no number", "lower the learning rate")
        fill(request_, "tent", LEARNS)

    monkeypatch.setattr(compare.run, "run_sequence", learn)
    request = replace(request_, methods=["adabn", "cotta", "tent"])
    with pytest.raises(Problems) as caught:
        tell(request)
    assert caught.value.exit_code == 2
    reason = "1-site-segmenter: the loss is no number; lower the learning rate"
    assert str(caught.value).splitlines() == [f"adabn seed 0, {reason}", f"cotta seed 0, {reason}"]
    assert [row["row"] for row in rows(request_, "table.csv")] == ["tent"]


@pytest.mark.parametrize("error", [Interrupted("0-site", 75), RunFolderError("disk", "is full", "free some space")])
def test_everything_else_stops_at_once(request_, monkeypatch, error):
    learn = Mock(side_effect=error)
    monkeypatch.setattr(compare.run, "run_sequence", learn)
    with pytest.raises(type(error)):
        tell(replace(request_, methods=["source_only", "tent"]))
    assert [call.args[0].sequence.method for call in learn.mock_calls] == ["source_only"]


def test_runs_share_the_source_and_one_store(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 50)
    out = tmp_path / "out"
    words = ("compare", pipeline, "--data", pipeline.parent / "data", "--out", out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert garda(*words, "--methods", "randomised") == 4
    printed, error = capsys.readouterr()
    assert "0-bssfp_1p5t-segmenter:" in printed
    assert error.startswith("randomised seed 0, http://127.0.0.1:1: 0 of ")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert garda(*words, "--methods", "randomised") == 0
    printed = capsys.readouterr().out
    assert "randomised seed 0: finished before" in printed
    assert printed.splitlines()[-1] == f"every number, and pictures: {out}"
    assert {"comparison.csv", "differences.csv", "table.csv", "matrices.png", "curves.png"} <= set(os.listdir(out))
    assert garda(*words, "--methods", "adabn", "--label", "more", "--set", "adabn.batches=4") == 0
    printed = capsys.readouterr().out
    assert "0-bssfp_1p5t-segmenter:" not in printed and "adabn (more) seed 0:" in printed
    again = Request(pipeline, tmp_path / "no scans", out, methods=["randomised"])
    assert compare_plan.plan_runs(again, Pseudonyms(pseudonyms.load_key()))[1][0].finished
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id], "tags.`garda.stage` = ''")
    labels = {run.info.run_name: run.data.tags.get("garda.label") for run in runs}
    assert labels == {"randomised seed 0": None, "adabn (more) seed 0": "more"}
    assert not list(out.glob("runs/**/mlflow.db"))
