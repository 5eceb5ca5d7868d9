import io
import re
import shutil
import signal
import subprocess
import sys
import time
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
from garda.core.pseudonyms import Pseudonyms
from garda.data import checks, volume
from garda.data.sequence import read_sequence
from garda.evaluation.metrics import Score, read_scores
from garda.handover.format import KNOWN, SIGNATURES
from garda.methods import metadata
from garda.methods.base import Oracle
from garda.methods.registry import METHODS
from garda.models import inference
from garda.runs import mlflow, predict
from garda.runs.run import run_sequence
from garda.runs.stage import warn_regression
from garda.runs.tracking import InMemory
from tests.support import sites
from tests.support.fakes import StopAt
from tests.support.sites import SITES

STAGES = [f"{index}-{site}" for index, site in enumerate(SITES)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites.write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InMemory]:
    out, tracker = tmp_path_factory.mktemp("finished") / "run", InMemory()
    sites.run_tiny(pipeline, out, tracker)
    return out, tracker


def kept(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.safetensors"))}


def without_names(file: Path) -> list[str]:
    """The score rows without their pseudonyms, which depend on the user's key."""
    return [",".join(line.split(",")[:2] + line.split(",")[4:]) for line in file.read_text().splitlines()]


def test_every_domain_is_scored_after_every_stage(finished):
    out, tracker = finished
    scores = read_scores(out / "scores.csv")
    assert {(score.stage, score.domain) for score in scores} == {(i, site) for i in range(3) for site in SITES}
    assert len(scores) == 3 * 3 * 3  # stages, test patients, classes
    assert (out / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "matrix.csv").read_text().splitlines()) == 4
    assert tracker.status == "finished"
    assert {f"dice/{site}/myocardium" for site in SITES} <= {name for stage, name in tracker.metrics if stage == 2}
    assert {(f"{stage}-{part}") for stage in STAGES for part in ("segmenter", "generator")} == {
        stage for stage, _ in tracker.curves
    }


def test_nothing_but_knowledge_stays_of_a_stage(finished):
    out, _ = finished
    for stage in STAGES:
        assert [path.name for path in (out / "stages" / stage).iterdir()] == ["package"]
    names = {path.name for path in (out / "stages").rglob("*") if path.is_file()}
    assert names == {*KNOWN} - {SIGNATURES}


def test_no_patient_no_case_and_no_data_path_is_written_or_printed(pipeline, tmp_path, capsys):
    """Every byte of the run folder, MLflow's store, its artifacts and what was printed."""
    folder, out = tmp_path / "conspicuous", tmp_path / "run"
    sites.write_conspicuous(pipeline, folder)
    run = sites.tiny_run(
        read_sequence(folder / "pipeline.yaml"), folder / "pipeline.yaml", out, mlflow.open_tracker(out, print)
    )
    with Console() as console:
        run_sequence(replace(run, console=console))
    private = [b"Mustermann", b"conspicuous", *(f"{site}_0".encode() for site in SITES), b".nii"]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"mlflow.db", "tracking.jsonl", "scores.csv"} <= {path.name for path in files}
    for path in files:
        assert [word for word in private if word in path.read_bytes()] == [], path
    printed = capsys.readouterr()
    assert [word for word in private if word in (printed.out + printed.err).encode()] == []


def test_the_same_command_changes_nothing(finished, pipeline):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("package/*")}
    scores = (out / "scores.csv").read_text()
    sites.run_tiny(pipeline, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("package/*")} == before
    assert (out / "scores.csv").read_text() == scores


@pytest.mark.parametrize("part", ["segmenter", "generator"])
@pytest.mark.parametrize("stage", [STAGES[0], STAGES[1]])
def test_a_stopped_run_ends_with_equal_weights(finished, pipeline, tmp_path, stage, part):
    stop = StopAt(f"{stage}-{part}", 1)
    with pytest.raises(Interrupted):
        sites.run_tiny(pipeline, tmp_path / "run", stop, stop.stopping)
    assert (tmp_path / "run" / "stages" / stage / "training" / part / "checkpoint.pt").exists()
    sites.run_tiny(pipeline, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(finished[0])
    assert without_names(tmp_path / "run" / "scores.csv") == without_names(finished[0] / "scores.csv")


def test_a_plan_that_appends_targets_goes_on(finished, pipeline, tmp_path):
    shorter = pipeline.with_name("shorter.yaml")
    shorter.write_text(pipeline.read_text().replace(f", {SITES[2]}", ""))
    sites.run_tiny(shorter, tmp_path / "run")
    assert len(list((tmp_path / "run" / "stages").iterdir())) == 2
    sites.run_tiny(pipeline, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(finished[0])
    assert without_names(tmp_path / "run" / "scores.csv") == without_names(finished[0] / "scores.csv")
    with pytest.raises(RunFolderError) as caught:
        sites.run_tiny(shorter, tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path}/run/plan.json: the folder holds another plan, domains differs; "
        "undo the change, or give a new --out folder"
    )


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"domains": 3}', "{"])
def test_a_damaged_plan_is_one_line(finished, pipeline, tmp_path, content):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "plan.json").write_text(content)
    message = f"{tmp_path}/run/plan.json: is damaged; give a new --out folder, or restore the file"
    with pytest.raises(RunFolderError) as caught:
        sites.run_tiny(pipeline, tmp_path / "run")
    assert str(caught.value) == message
    with Console() as console, pytest.raises(RunFolderError) as caught:
        predict.predict(tmp_path / "run", [], tmp_path, console)
    assert str(caught.value) == message


@pytest.mark.parametrize("content", ["null", "[]", "{}", "{"])
def test_damaged_knowledge_is_one_line(finished, pipeline, tmp_path, content):
    shutil.copytree(finished[0], tmp_path / "run")
    file = tmp_path / "run" / "stages" / STAGES[2] / "package" / "knowledge.json"
    file.write_text(content)
    with Console() as console, pytest.raises(PackageError) as caught:
        predict.predict(tmp_path / "run", [], tmp_path / "out", console)
    what = "has been changed: it is not the file of ledger line 3"
    assert str(caught.value) == f"{file}: {what}; ask for the package again"
    with pytest.raises(CheckpointError) as caught:
        metadata.read_metadata(file.parent)
    assert str(caught.value) == f"{file}: is damaged; copy the whole folder again"


def test_a_run_killed_at_its_very_start_goes_on(pipeline, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".plan.json.123.tmp").write_text('{"ga')
    sites.run_tiny(pipeline, out, method="source_only")
    assert not list(out.glob(".*.tmp"))


def test_scores_that_are_missing_are_computed_again(finished, pipeline, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    file = tmp_path / "run" / "scores.csv"
    whole = file.read_text()
    file.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    sites.run_tiny(pipeline, tmp_path / "run")
    assert file.read_text() == whole
    file.write_text(whole.replace("\n2,", "\n7,"))
    with pytest.raises(RunFolderError, match="holds stages of another run; delete it, it is computed again"):
        sites.run_tiny(pipeline, tmp_path / "run")


def test_a_run_killed_between_learning_and_scoring(finished, pipeline, tmp_path, monkeypatch):
    def die(*args, **others):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("garda.runs.run.write_scores", die)
        with pytest.raises(KeyboardInterrupt):
            sites.run_tiny(pipeline, tmp_path / "run")
    sites.run_tiny(pipeline, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(finished[0])
    assert (tmp_path / "run" / "scores.csv").read_text() == (finished[0] / "scores.csv").read_text()


def test_another_users_key_is_refused(finished, pipeline):
    run = sites.tiny_run(read_sequence(pipeline), pipeline, finished[0])
    with pytest.raises(RunFolderError, match="the folder holds another plan, pseudonyms differs"):
        run_sequence(replace(run, pseudonyms=Pseudonyms(b"another key")))


class DeleteAfter:
    """Deletes a domain's training files as soon as its stage has ended."""

    def __init__(self, data: Path) -> None:
        self.data, self.sequence = data, None

    def stage_ended(self, stage, stage_index, metrics):
        for case in self.sequence.domains[stage_index].split("train"):
            for file in (case.image, *case.labels):
                (self.data / file).unlink()

    def start(self, run): ...
    def losses(self, stage, step, values): ...
    def artifact(self, path): ...
    def finish(self, status): ...


@pytest.mark.parametrize("method", [name for name, known in METHODS.items() if not issubclass(known, Oracle)])
def test_a_run_ends_though_each_domains_training_files_are_deleted_after_its_stage(method, finished, tmp_path):
    pipeline = sites.write_tiny(tmp_path)
    tracker = DeleteAfter(tmp_path / "data")
    tracker.sequence = read_sequence(pipeline)
    sites.run_tiny(pipeline, tmp_path / "run", tracker, method=method)
    assert method != "garda_paper" or kept(tmp_path / "run") == kept(finished[0])
    assert not list((tmp_path / "data" / SITES[0] / "images").glob("*_000.nii.gz"))


def test_a_learner_never_sees_a_targets_label(pipeline, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(pipeline.parent, folder)
    sequence = read_sequence(folder / "pipeline.yaml")
    for domain in sequence.targets:
        for case in domain.split("train"):
            (folder / "data" / case.labels[0]).write_bytes(b"no label at all")
    learned = [case for case in checks.needed_cases(sequence, sequence.domains) if case.split == "train"]
    assert [bool(case.labels) for case in learned] == [True] * 2 + [False] * 4
    sites.run_tiny(folder / "pipeline.yaml", tmp_path / "run")


def test_another_plan_is_refused_by_its_key(finished, pipeline):
    with pytest.raises(RunFolderError, match=r"the folder holds another plan, settings.source.steps differs"):
        sites.run_tiny(pipeline, finished[0], changes={"source": {"steps": 6}})
    with pytest.raises(RunFolderError, match="another plan, seed differs"):
        sites.run_tiny(pipeline, finished[0], seed=5)
    with pytest.raises(RunFolderError, match="method differs"):
        sites.run_tiny(pipeline, finished[0], method="source_only")


def test_bad_input_is_told_at_once_and_nothing_is_written(pipeline, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(pipeline.parent, folder)
    images = sorted((folder / "data" / SITES[1] / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:50])
    with pytest.raises(Problems) as caught:
        sites.run_tiny(folder / "pipeline.yaml", tmp_path / "run")
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


def test_what_decides_no_result_may_change(finished, pipeline):
    sites.run_tiny(pipeline, finished[0], changes={"checkpoint_seconds": 5, "compute": {"precision": 32}})


def test_a_source_whose_labels_mark_nothing(tmp_path):
    pipeline = sites.write_tiny(tmp_path)
    task = tmp_path / "data" / "manifests" / "task.yaml"
    words = "label: {masks: [rv, myo, lv], slice_labelled_by: rv}\n"
    task.write_text(task.read_text() + words)
    for manifest in task.parent.glob("*.csv"):
        rows = manifest.read_text().splitlines()
        tripled = [";".join([row.rsplit(",", 1)[1]] * 3) for row in rows[1:]]
        body = [f"{row.rsplit(',', 1)[0]},{label}" for row, label in zip(rows[1:], tripled, strict=True)]
        manifest.write_text("\n".join([rows[0], *body]) + "\n")
    for file in (tmp_path / "data").rglob("labels/*.nii.gz"):
        label = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), file)
    with pytest.raises(DataError) as caught:
        sites.run_tiny(pipeline, tmp_path / "run")
    assert str(caught.value) == f"{SITES[0]}: no training label marks anything; give labels with a class"
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(pipeline, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(RunFolderError) as caught:
        sites.run_tiny(pipeline, tmp_path)
    assert str(caught.value) == f"{tmp_path}: holds something that is not a run of garda; give a new --out folder"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_data_folder(pipeline, tmp_path):
    sequence = read_sequence(pipeline)
    run = sites.tiny_run(sequence, tmp_path / "elsewhere" / "pipeline.yaml", tmp_path / "run")
    with pytest.raises(DataError, match="no folder that can be read; give the scans' folder under --data"):
        run_sequence(run)


def test_a_folder_without_any_of_the_scans_is_one_line(pipeline, tmp_path):
    sequence = read_sequence(pipeline)
    run = replace(sites.tiny_run(sequence, pipeline, tmp_path / "run"), data=pipeline.parent)
    with pytest.raises(DataError) as caught:
        run_sequence(run)
    image = sequence.source.split("train")[0].image
    remedy = "give the folder that the manifests' paths are relative to"
    assert re.fullmatch(
        rf"{pipeline.parent}: holds none of the \d+ scans, such as {image}; {remedy}", str(caught.value)
    )
    assert not (tmp_path / "run").exists()


def test_label_maps_lie_in_the_images_space(finished, pipeline, tmp_path):
    sequence = read_sequence(pipeline)
    case = sequence.targets[0].split("test")[0]
    image = pipeline.parent / "data" / case.image
    with Console() as console:
        (written,) = predict.predict(finished[0], [image], tmp_path / "out", console)
        (earlier,) = predict.predict(finished[0], [image], tmp_path / "early", console, stage=0)
    there, here = nibabel.load(image), nibabel.load(written)
    assert here.shape == there.shape and np.array_equal(here.affine, there.affine)
    assert set(np.unique(np.asarray(here.dataobj))) <= {0, 1, 2, 3}
    assert earlier.exists()
    label = volume.read_volume(case, sequence.task, pipeline.parent / "data", with_label=True).label
    assert label.numel() == np.asarray(here.dataobj).size


def test_a_site_is_named_for_prediction(finished, pipeline, tmp_path):
    image = next((pipeline.parent / "data" / SITES[0] / "images").iterdir())
    with Console() as console:
        for name in (SITES[0], "other"):
            (written,) = predict.predict(finished[0], [image], tmp_path / name, console, domain=name)
            assert written.exists()
        with pytest.raises(ConfigError) as caught:
            predict.predict(finished[0], [image], tmp_path / "typo", console, domain="bssfp")
    assert str(caught.value) == f"--domain: 'bssfp' has not been met; use one of {', '.join(SITES)}, other"


def test_a_network_that_a_stage_left_as_it_was_is_not_scored_again(pipeline, tmp_path, monkeypatch):
    read: list[int] = []

    def count(*given: Any) -> Any:
        read.append(1)
        return own(*given)

    own = inference.segment
    monkeypatch.setattr(inference, "segment", count)
    scores = sites.run_tiny(pipeline, tmp_path / "run", method="garda")
    assert len(read) == 3 + 1 + 1  # every site once, then each target after its own stage
    rows = {(row.stage, row.domain, row.name): row for row in scores}
    for (stage, domain, name), row in rows.items():
        if stage > SITES.index(domain):
            assert row == replace(rows[stage - 1, domain, name], stage=stage)


def test_predictions_that_cannot_be_made(finished, pipeline, tmp_path):
    image = next((pipeline.parent / "data" / SITES[0] / "images").iterdir())
    with Console() as console:
        with pytest.raises(DataError, match="exists already; give another --out folder, or remove it"):
            predict.predict(finished[0], [image], image.parent / ".." / "images", console)
        broken = tmp_path.parent / "broken.nii.gz"
        broken.write_bytes(b"")
        with pytest.raises(DataError, match=r"broken\.nii\.gz"):
            predict.predict(finished[0], [image, broken], tmp_path, console)
        with pytest.raises(DataError, match="as another image; predict them apart"):
            predict.predict(finished[0], [image, image], tmp_path, console)
        with pytest.raises(RunFolderError, match="has no stage 7; its stages are 0 to 2"):
            predict.predict(finished[0], [image], tmp_path, console, stage=7)
        with pytest.raises(DataError, match=r"^nowhere\.png: does not exist; check the path$"):
            predict.predict(finished[0], [image, Path("nowhere.png")], tmp_path, console)
        with pytest.raises(PackageError, match=r"is no package, ledger\.jsonl is missing; give a package, or a run"):
            predict.predict(tmp_path, [image], tmp_path / "out", console)
    assert list(tmp_path.iterdir()) == []


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
    hurried = pipeline.with_name("hurried.yaml")
    hurried.write_text(pipeline.read_text() + "settings: {checkpoint_seconds: 0.001}\n")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sites.run_tiny(hurried, whole)
    process = subprocess.Popen(command(hurried, killed), stdout=subprocess.DEVNULL)
    checkpoint = killed / "stages" / part / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command(hurried, killed), check=True, stdout=subprocess.DEVNULL)
    assert kept(killed) == kept(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_end_with_a_checkpoint_and_their_exit_code(pipeline, tmp_path, number, code):
    long = pipeline.with_name("long.yaml")
    long.write_text(pipeline.read_text() + "settings: {source: {steps: 100000}, checkpoint_seconds: 0.5}\n")
    process = subprocess.Popen(
        command(long, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "run" / "stages" / STAGES[0] / "training" / "segmenter" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    written = checkpoint.stat().st_mtime_ns
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert errors.splitlines()[-1] == (
        f"{STAGES[0]}-segmenter: stopped on request; run the same command again to go on from here"
    )
    assert checkpoint.stat().st_mtime_ns > written


def test_a_site_whose_dice_falls_in_its_own_stage_is_told(pipeline, tmp_path):
    said = io.StringIO()
    sequence = read_sequence(pipeline)
    with Console(RichConsole(file=said, soft_wrap=True)) as console:
        run = replace(sites.tiny_run(sequence, pipeline, tmp_path), console=console)
        domain = sequence.domains[1]
        rows = {"p": 0.8, "q": 0.6}
        before = [Score(0, domain.name, who, who, 0, "organ", dice, 1.0, "mm") for who, dice in rows.items()]
        for fallen, told in ((0.03, True), (0.01, False), (-0.2, False)):
            after = [replace(row, stage=1, dice=row.dice - fallen) for row in before]
            others = [replace(row, domain="another", dice=0.0) for row in after]
            warn_regression(run, domain, [*before, *after, *others])
            assert ("fell from 0.700 to 0.670 in its own stage; look at its label maps" in said.getvalue()) == told
            said.truncate(0)
            said.seek(0)
        warn_regression(run, domain, before)
    assert said.getvalue() == ""
