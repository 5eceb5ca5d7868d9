import hashlib
import io
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GardaError,
    Interrupted,
    PackageError,
    Problems,
    RunFolderError,
)
from garda.core.pseudonyms import Pseudonyms, load_key
from garda.data import checks, readers, volume
from garda.data.manifest import digest_manifest, read_manifest, write_manifest
from garda.data.sequence import read_sequence
from garda.evaluation.metrics import read_scores
from garda.handover.format import EXPERT_FILES, KNOWN, SIGNATURES
from garda.handover.verify import open_package
from garda.methods import metadata
from garda.methods.oracles import Oracle
from garda.methods.registry import METHODS
from garda.models import inference
from garda.runs import mlflow
from garda.runs import stage as garda_stage
from garda.runs.run import run_sequence
from tests.support import sites
from tests.support.cli import garda
from tests.support.errors import told
from tests.support.fakes import StopAt
from tests.support.sites import SITES

STAGES = [f"{index}-{site}" for index, site in enumerate(SITES)]
HURRIED = "name: tiny\nsettings: {checkpoint_seconds: 0.001}"


@pytest.fixture(scope="module")
def finished(run_of: Callable[[str], Path]) -> Path:
    """The run of the pipeline's own method."""
    return run_of("garda_paper")


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed or gone on with."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def alone(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's source alone."""
    return sites.other_words(pipeline, tmp_path_factory.mktemp("alone"), f"[{SITES[1]}, {SITES[2]}]", "[]")


@pytest.fixture(scope="module")
def shorter(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline with one target."""
    return sites.other_words(pipeline, tmp_path_factory.mktemp("shorter"), f", {SITES[2]}", "")


def kept(out: Path, stages: int = 3) -> dict[str, bytes]:
    """What networks and statistics the first stages have left."""
    files = [path for stage in STAGES[:stages] for path in (out / "stages" / stage).rglob("*.safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}


def without_names(file: Path) -> list[str]:
    """The score rows without their pseudonyms, which depend on the user's key."""
    return [",".join(line.split(",")[:2] + line.split(",")[4:]) for line in file.read_text().splitlines()]


def test_every_domain_is_scored_after_every_stage(finished):
    out, tracker = finished, pickle.loads(finished.with_name("tracker.pickle").read_bytes())
    scores = read_scores(out / "scores.csv")
    assert {(score.stage, score.domain) for score in scores} == {(i, site) for i in range(3) for site in SITES}
    assert len(scores) == 3 * 3 * 3  # stages, test patients, classes
    assert (out / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "matrix.csv").read_text().splitlines()) == 4
    assert tracker.status == "finished"
    assert {f"dice/{site}/myocardium" for site in SITES} <= {name for stage, name in tracker.metrics if stage == 2}
    phases = {f"{stage}-{part}" for stage in STAGES for part in ("segmenter", "generator")}
    assert {phase for phase, _ in tracker.curves} == phases | {f"{STAGES[0]}-plain"}


@pytest.mark.parametrize("value", ["0.999", "-1", "7", "inf"])
def test_edited_scores_are_neither_shown_nor_gone_on_with(value, pipeline, again):
    file = again / "scores.csv"
    lines = file.read_text().splitlines()
    column = lines[0].split(",").index("dice")
    cells = lines[-1].split(",")
    lines[-1] = ",".join([*cells[:column], value, *cells[column + 1 :]])
    file.write_text("\n".join(lines) + "\n")
    what = "says of lge_3t after stage 2 other than the ledger of 2-lge_3t" if value == "0.999" else "is damaged"
    assert f"{what}; delete " in told(RunFolderError, sites.run_tiny, pipeline, again)
    file.unlink()
    assert sites.run_tiny(pipeline, again)


def test_a_run_that_goes_on_under_other_threads_says_so(alone, pipeline, tmp_path):
    said = io.StringIO()
    for number, which in ((1, alone), (1, pipeline), (2, pipeline)):
        torch.set_num_threads(number)
        run = sites.tiny_run(read_sequence(which, method="source_only"), which, tmp_path / "run")
        with Console(RichConsole(file=said, soft_wrap=True)) as console:
            if number == 2:
                shutil.rmtree(run.kept(run.sequence.domains[-1]))
            run_sequence(replace(run, console=console))
    torch.set_num_threads(1)
    lines = [line for line in said.getvalue().splitlines() if "goes on under" in line]
    assert lines == ["goes on under threads 2, before 1: last bits may differ from those of a run in one go"]


def test_no_plain_digest_of_a_manifest_stands_in_a_run_folder(pipeline, again):
    plain = [hashlib.sha256(sites.manifest(pipeline, site).read_bytes()).hexdigest().encode() for site in range(3)]
    plain += [digest_manifest(sites.manifest(pipeline, site)).encode() for site in range(3)]
    files = [path for path in again.rglob("*") if path.is_file()]
    assert not [path for path in files if any(digest in path.read_bytes() for digest in plain)]


def test_a_scan_that_changes_after_the_check_is_not_learnt_from(pipeline, tmp_path, monkeypatch):
    own = sites.copy(pipeline, tmp_path / "tiny")
    for site in range(3):  # with digests
        manifest = sites.manifest(own, site)
        cases = read_manifest(manifest, read_sequence(own).task)
        recorded = [
            replace(
                case, digests=tuple((f, *readers.digest(own.parent / "data" / f)) for f in (case.image, *case.labels))
            )
            for case in cases
        ]
        write_manifest(manifest, recorded)
    scan, learn = sites.image(own, 1), garda_stage.learn

    def changed(run, method, domain, before):
        if domain.index == 1:
            stored = nibabel.load(scan)
            voxels = np.array(stored.dataobj)
            voxels.flat[0] += 1
            nibabel.save(nibabel.Nifti1Image(voxels, stored.affine, stored.header), scan)
        return learn(run, method, domain, before)

    monkeypatch.setattr(garda_stage, "learn", changed)
    what = told(DataError, sites.run_tiny, own, tmp_path / "run", method="source_only")
    assert f"image {SITES[1]}/images/{scan.name} has changed since the run began; restore the file" in what


def test_scores_are_not_in_the_order_of_the_manifest(finished):
    rows = [(row.stage, SITES.index(row.domain), row.patient) for row in read_scores(finished / "scores.csv")]
    assert rows == sorted(rows)


def test_nothing_but_knowledge_stays_of_a_stage(finished):
    for stage in STAGES:
        assert [path.name for path in (finished / "stages" / stage).iterdir()] == ["package"]
    names = {path.name for path in (finished / "stages").rglob("*") if path.is_file()}
    assert names == {*KNOWN} - {SIGNATURES, *EXPERT_FILES}


def test_no_patient_no_case_and_no_data_path_is_written_or_printed(pipeline, tmp_path, capsys):
    """Every byte of the run folder, MLflow's store, its artifacts and what was printed."""
    folder, out = tmp_path / "conspicuous", tmp_path / "run"
    sites.write_conspicuous(pipeline, folder)
    with Console() as console:
        sites.run_tiny(folder / "pipeline.yaml", out, mlflow.open_tracker(out, print), console=console)
    private = [b"Mustermann", b"conspicuous", *(f"{site}_0".encode() for site in SITES), b".nii"]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"mlflow.db", "tracking.jsonl", "scores.csv"} <= {path.name for path in files}
    for path in files:
        assert [word for word in private if word in path.read_bytes()] == [], path
    printed = capsys.readouterr()
    assert [word for word in private if word in (printed.out + printed.err).encode()] == []


@pytest.mark.parametrize("changes", [{}, {"checkpoint_seconds": 5, "compute": {"precision": 32}}])
def test_the_same_command_changes_nothing_even_with_other_settings_that_decide_no_result(changes, again, pipeline):
    before = {path: path.stat().st_mtime_ns for path in again.rglob("package/*")}
    scores = (again / "scores.csv").read_text()
    sites.run_tiny(pipeline, again, changes=changes)
    assert {path: path.stat().st_mtime_ns for path in again.rglob("package/*")} == before
    assert (again / "scores.csv").read_text() == scores


@pytest.mark.parametrize("part", ["segmenter", "generator"])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_run_stopped_in_its_last_stage_ends_with_equal_weights(finished, alone, shorter, tmp_path, stages, part):
    pipeline, stage = [alone, shorter][stages - 1], STAGES[stages - 1]
    stop = StopAt(f"{stage}-{part}", 1)
    with pytest.raises(Interrupted):
        sites.run_tiny(pipeline, tmp_path / "run", stop, stop.stopping)
    assert (tmp_path / "run" / "stages" / stage / "training" / part / "checkpoint.pt").exists()
    sites.run_tiny(pipeline, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(finished, stages)
    scores = without_names(tmp_path / "run" / "scores.csv")
    assert {*scores} <= {*without_names(finished / "scores.csv")} and len(scores) == 1 + 3 * stages**2


def test_a_plan_that_appends_targets_goes_on(finished, pipeline, shorter, tmp_path):
    sites.run_tiny(shorter, tmp_path / "run")
    assert len(list((tmp_path / "run" / "stages").iterdir())) == 2
    sites.run_tiny(pipeline, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(finished)
    assert without_names(tmp_path / "run" / "scores.csv") == without_names(finished / "scores.csv")
    assert told(RunFolderError, sites.run_tiny, shorter, tmp_path / "run") == (
        f"{tmp_path}/run/plan.json: the folder holds another plan, domains differs; "
        "undo the change, or give a new --out folder"
    )


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"domains": 3}', "{"])
def test_a_damaged_plan_is_one_line(again, pipeline, tmp_path, content):
    (again / "plan.json").write_text(content)
    message = f"{again}/plan.json: is damaged; give a new --out folder, or restore the file"
    assert told(RunFolderError, sites.run_tiny, pipeline, again) == message
    assert told(RunFolderError, sites.predict, again, [], tmp_path) == message


@pytest.mark.parametrize("content", ["null", "[]", "{}", "{"])
def test_damaged_knowledge_is_one_line(again, tmp_path, content):
    file = again / "stages" / STAGES[2] / "package" / "knowledge.json"
    file.write_text(content)
    what = "has been changed: it is not the file of ledger line 3; ask for the package again"
    assert told(PackageError, sites.predict, again, [], tmp_path / "out") == f"{file}: {what}"
    what = "is damaged; copy the whole folder again"
    assert told(CheckpointError, metadata.read_metadata, file.parent) == f"{file}: {what}"


def test_a_run_killed_at_its_very_start_goes_on(alone, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".plan.json.123.tmp").write_text('{"ga')
    sites.run_tiny(alone, out, method="source_only")
    assert not list(out.glob(".*.tmp"))


def test_scores_that_are_missing_are_computed_again(again, pipeline):
    file = again / "scores.csv"
    whole = file.read_text()
    file.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    sites.run_tiny(pipeline, again)
    assert file.read_text() == whole
    file.write_text(whole.replace("\n2,", "\n7,"))
    with pytest.raises(RunFolderError, match="holds stages of another run; delete it, it is computed again"):
        sites.run_tiny(pipeline, again)


def test_a_run_killed_between_learning_and_scoring(finished, alone, tmp_path, monkeypatch):
    def die(*args, **others):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("garda.runs.run.write_scores", die)
        with pytest.raises(KeyboardInterrupt):
            sites.run_tiny(alone, tmp_path / "run")
    sites.run_tiny(alone, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(finished, 1)
    rows = [row for row in read_scores(finished / "scores.csv") if row.stage == 0 and row.domain == SITES[0]]
    assert read_scores(tmp_path / "run" / "scores.csv") == rows


@pytest.mark.parametrize("method", [name for name, known in METHODS.items() if not issubclass(known, Oracle)])
def test_no_method_reads_a_targets_label_or_needs_the_training_files_of_a_stage_that_has_ended(method, run_of):
    """Such files were unreadable or gone where this run was made."""
    run = run_of(method)
    data = run.with_name("tiny") / "data"
    assert {score.stage for score in read_scores(run / "scores.csv")} == {0, 1, 2}
    assert not [site for site in SITES if [*(data / site).glob("*/*_000.nii.gz")]]
    assert [*data.glob("*/*/*_003.nii.gz")]


def test_a_learner_is_given_labels_of_the_source_alone(pipeline):
    sequence = read_sequence(pipeline)
    needed = checks.needed_cases(sequence, sequence.domains)
    assert [bool(case.labels) for case in needed if case.split == "train"] == [True] * 2 + [False] * 4
    held_out = [case for case in needed if case.split == "val"]
    assert [case.case for case in held_out] == [f"{SITES[0]}_002"] and held_out[0].labels


def test_another_plan_is_refused_by_its_key(again, pipeline):
    for key, other in (
        ("settings.source.steps", {"changes": {"source": {"steps": 6}}}),
        ("seed", {"seed": 5}),
        ("method", {"method": "source_only"}),
        ("pseudonyms", {"pseudonyms": Pseudonyms(b"another key")}),
    ):
        assert f"the folder holds another plan, {key} differs" in told(
            RunFolderError, sites.run_tiny, pipeline, again, **other
        )


def test_bad_input_is_told_at_once_and_nothing_is_written(pipeline, tmp_path):
    changed = sites.copy(pipeline, tmp_path / "tiny")
    first, second = (sites.image(changed, 1, number) for number in (0, 1))
    first.unlink()
    second.write_bytes(second.read_bytes()[:50])
    with pytest.raises(Problems) as caught:
        sites.run_tiny(changed, tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        sites.run_tiny(pipeline, tmp_path / "run", changes={"source": {"step": 6}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute": {"accelerator": "cuda"}}, "no CUDA device is available"),
        ({"garda_paper": {"features": {"encoder": "vgg19"}}}, "vgg19 needs a weights file and its SHA-256"),
        ({"garda_paper": {"network": {"widths": [[4]] * 7}}}, "7 resolutions cannot draw 64 x 64 pixels"),
        ({"garda_paper": {"style": {"widths": [4] * 6}}}, "6 convolutions are too many for 16 x 16"),
        ({"garda_paper": {"images": {"r1_interval": 0}}}, "should be greater than 0, got 0"),
    ],
)
def test_what_could_only_fail_later_is_refused_at_once(pipeline, tmp_path, changes, message):
    if "compute" in changes and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(GardaError, match=message):
        sites.run_tiny(pipeline, tmp_path / "run", changes=changes)
    assert not (tmp_path / "run").exists()


def test_a_source_whose_labels_mark_nothing(pipeline, tmp_path):
    pipeline = sites.copy(pipeline, tmp_path / "tiny")
    task = pipeline.parent / "data" / "manifests" / "task.yaml"
    words = "label: {masks: [rv, myo, lv], slice_labelled_by: rv}\n"
    task.write_text(task.read_text() + words)
    for manifest in task.parent.glob("*.csv"):
        rows = manifest.read_text().splitlines()
        tripled = [";".join([row.rsplit(",", 1)[1]] * 3) for row in rows[1:]]
        body = [f"{row.rsplit(',', 1)[0]},{label}" for row, label in zip(rows[1:], tripled, strict=True)]
        manifest.write_text("\n".join([rows[0], *body]) + "\n")
    for file in (pipeline.parent / "data").rglob("labels/*.nii.gz"):
        label = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), file)
    what = f"{SITES[0]}: no training label marks anything; give labels with a class"
    assert told(DataError, sites.run_tiny, pipeline, tmp_path / "run") == what
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(pipeline, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    what = f"{tmp_path}: holds something that is not a run of garda; give a new --out folder"
    assert told(RunFolderError, sites.run_tiny, pipeline, tmp_path) == what
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_data_folder_and_one_without_any_of_the_scans_are_one_line(pipeline, tmp_path):
    what = "no folder that can be read; give the scans' folder under --data"
    assert what in told(DataError, sites.run_tiny, pipeline, tmp_path / "run", data=tmp_path / "none")
    said = told(DataError, sites.run_tiny, pipeline, tmp_path / "run", data=pipeline.parent)
    image = read_sequence(pipeline).source.split("train")[0].image
    remedy = "give the folder that the manifests' paths are relative to"
    assert re.fullmatch(rf"{pipeline.parent}: holds none of the \d+ scans, such as {image}; {remedy}", said)
    assert not (tmp_path / "run").exists()


def test_label_maps_lie_in_the_images_space(finished, pipeline, tmp_path):
    sequence = read_sequence(pipeline)
    case = sequence.targets[0].split("test")[0]
    image = pipeline.parent / "data" / case.image
    (written,) = sites.predict(finished, [image], tmp_path / "out")
    (earlier,) = sites.predict(finished, [image], tmp_path / "early", stage=0)
    there, here = nibabel.load(image), nibabel.load(written)
    assert here.shape == there.shape and np.array_equal(here.affine, there.affine)
    assert set(np.unique(np.asarray(here.dataobj))) <= {0, 1, 2, 3}
    assert earlier.exists()
    label = volume.read_volume(case, sequence.task, pipeline.parent / "data", with_label=True).label
    assert label.numel() == np.asarray(here.dataobj).size


def test_a_site_is_named_for_prediction(finished, pipeline, tmp_path):
    images = [sites.image(pipeline, 0)]
    for name in (SITES[0], "other"):
        (written,) = sites.predict(finished, images, tmp_path / name, domain=name)
        assert written.exists()
    what = f"--domain: 'bssfp' has not been met; use one of {', '.join(SITES)}, other"
    assert told(ConfigError, sites.predict, finished, images, tmp_path / "typo", domain="bssfp") == what


def test_a_network_that_a_stage_left_as_it_was_is_not_scored_again(pipeline, tmp_path, monkeypatch):
    read: list[int] = []

    def count(*given: Any) -> Any:
        read.append(1)
        return own(*given)

    own = inference.segment
    monkeypatch.setattr(inference, "segment", count)
    scores = sites.run_tiny(pipeline, tmp_path / "run", method="garda")
    assert len(read) == 1 + 3 + 1 + 1  # for post-processing, every site once, then each target after its own stage
    rows = {(row.stage, row.domain, row.name): row for row in scores}
    for (stage, domain, name), row in rows.items():
        if stage > SITES.index(domain):
            assert row == replace(rows[stage - 1, domain, name], stage=stage)


@pytest.mark.parametrize(
    ("names", "more", "what"),
    [
        ([], {"out": "images"}, "exists already; give another --out folder, or remove it"),
        (["broken.nii.gz"], {}, "broken.nii.gz"),
        (["scan.nii.gz"], {}, "as another image; predict them apart"),
        ([], {"stage": 7}, "has no stage 7; its stages are 0 to 2"),
        (["nowhere.png"], {}, "nowhere.png: does not exist; check the path"),
        ([], {"run": "images"}, "is no package, ledger.jsonl is missing; give a package, or a run"),
    ],
)
def test_predictions_that_cannot_be_made(names, more, what, finished, pipeline, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(sites.image(pipeline, 0), images / "scan.nii.gz")
    (images / "broken.nii.gz").write_bytes(b"")
    run = tmp_path / more.pop("run") if "run" in more else finished
    given = [images / "scan.nii.gz", *(images / name for name in names)], tmp_path / more.pop("out", "maps")
    assert what in told((DataError, PackageError, RunFolderError), sites.predict, run, *given, **more)
    assert {path.name for path in tmp_path.rglob("*")} == {"images", "scan.nii.gz", "broken.nii.gz"}


def command(pipeline: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-c", "import torch; torch.set_num_threads(1); from garda.cli import main; main()",
        "run", str(pipeline), "--data", str(pipeline.parent / "data"), "--out", str(out),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(f"{STAGES[0]}/training/segmenter", marks=pytest.mark.slow),
        pytest.param(f"{STAGES[0]}/training/generator", marks=pytest.mark.slow),
        f"{STAGES[1]}/training/generator",
        pytest.param(f"{STAGES[1]}/training/segmenter", marks=pytest.mark.slow),
    ],
)
def test_kill_9_in_each_kind_of_stage(finished, pipeline, tmp_path, part):
    """The process is killed while a stage trains, at whatever step it has reached."""
    hurried = sites.other_words(pipeline, tmp_path / "hurried", "name: tiny", HURRIED)
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(hurried, killed), stdout=subprocess.DEVNULL)
    checkpoint = killed / "stages" / part / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    sites.run_tiny(hurried, killed, pseudonyms=Pseudonyms(load_key()))
    assert kept(killed) == kept(finished)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_end_with_a_checkpoint_and_their_exit_code(pipeline, tmp_path, number, code):
    settings = "name: tiny\nsettings: {source: {steps: 100000, stopping: null}, checkpoint_seconds: 0.5}"
    long = sites.other_words(pipeline, tmp_path / "long", "name: tiny", settings)
    process = subprocess.Popen(
        command(long, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "run" / "stages" / STAGES[0] / "training" / "plain" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    written = checkpoint.stat().st_mtime_ns
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert errors.splitlines()[-1] == (
        f"{STAGES[0]}-plain: stopped on request; run the same command again to go on from here"
    )
    assert checkpoint.stat().st_mtime_ns > written


def test_a_measured_fall_of_an_earlier_site_holds_the_stage(pipeline, tmp_path, monkeypatch, capsys):
    score, dice = garda_stage.score_domains, {0: 0.7, 1: 0.66, 2: 0.66}

    def fallen(run, method, domain, knowledge, domains, name="scores"):
        rows = score(run, method, domain, knowledge, domains, name)
        return [replace(row, dice=dice[domain.index]) if row.domain == SITES[0] else row for row in rows]

    monkeypatch.setattr(garda_stage, "score_domains", fallen)
    monkeypatch.setattr(METHODS["adabn"], "reads_equally", lambda *_: False)
    out = tmp_path / "run"
    assert garda("run", pipeline, "--data", pipeline.parent / "data", "--out", out, "--method", "adabn") == 0
    reason = f"Dice of {SITES[0]} fell from 0.700 to 0.660 in this stage"
    assert f"warning: {reason}; look at its label maps before it is used there" in capsys.readouterr().out
    with open_package(out) as found:
        source, fell, last = found.entries
        assert (fell.decision, fell.reasons[-1]) == ("hold", reason) and reason not in (*source.reasons, *last.reasons)
        assert reason in (found.folder / "card.md").read_text("utf-8")
    assert garda("verify", out) == 0
    assert f"  {reason}\n" in capsys.readouterr().out
