"""Tracking: nothing is lost or doubled, whatever fails; MLflow shows a parent with its stages."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from garda.core.errors import ConfigError, RunFolderError, Undelivered
from garda.runs import journal, mlflow, mlflow_page, mlflow_words
from garda.runs.journal import Event, Journalled
from garda.runs.mlflow import MLflow
from garda.runs.tracking import InMemory, RunDescription, Tracker

SHA = "0123456789abcdef" * 4
RUN = RunDescription(
    name="phantom",
    method="garda_paper",
    seed=3,
    parameters={"source": {"steps": 20, "rate": 0.1}, "features": {"weights": "/home/me/vgg19.pt"}},
    manifests=[("SiteA", SHA, {"train": 3, "val": 0, "test": 2}), ("SiteB", SHA[::-1], {"train": 4, "test": 1})],
    stages=["0-SiteA", "1-SiteB"],
)


class Recorder:
    """A store that takes note, in place of MLflow; fails while it is told to, before or after it took the events."""

    name = "recorder"

    def __init__(self) -> None:
        self.taken: dict[int, Event] = {}
        self.calls = 0
        self.fails: str | None = None

    def deliver(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        self.calls += 1
        if self.fails != "before":
            assert all(self.taken.setdefault(event.number, event) == event for event in events)
        if self.fails:
            raise ConnectionError("no route to http://me:secret@tracker:5000\nat all")

    def points(self) -> list[tuple[str, int, str, float]]:
        """Every loss that was taken: part, step, name, value."""
        losses = [event.values for event in self.taken.values() if event.kind == "losses"]
        return [(each["part"], each["step"], *loss) for each in losses for loss in each["values"].items()]

    def steps(self) -> list[int]:
        return [step for _, step, name, _ in self.points() if name == "dice"]


def begin(out: Path, store: Recorder, tell: Callable[[str], None] = pytest.fail) -> Journalled:
    tracker = Journalled(out, store, tell)
    tracker.start(RUN)
    return tracker


def learn(tracker: Tracker, start: int = 0, stop: int = 6) -> None:
    for step in range(start, stop):
        tracker.losses("0-SiteA-segmenter", step, {"dice": 1 / (step + 1), "cross_entropy": float(step)})


def whole_run(tracker: Tracker, out: Path, run: RunDescription = RUN) -> None:
    (out / "scores.csv").write_text("stage,dice\n0,0.9\n")
    tracker.start(run)
    learn(tracker)
    tracker.stage_ended("0-SiteA", 0, {"dice/SiteA/cord": 0.9, "dice/SiteB/cord": 0.4, "forgetting": float("nan")})
    tracker.artifact(out / "scores.csv")
    tracker.losses("1-SiteB-generator", 0, {"content": 0.5})
    tracker.stage_ended("1-SiteB", 1, {"dice/SiteA/cord": 0.8, "dice/SiteB/cord": 0.7, "forgetting": 0.1})
    tracker.artifact(out / "scores.csv")
    tracker.finish("finished")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder with a blank in its name, and an empty working directory that stays empty."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "a run"
    folder.mkdir()
    yield folder
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, made by MLflow from nothing; tests only read it."""
    folder = tmp_path_factory.mktemp("finished run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        whole_run(mlflow.open_tracker(folder, pytest.fail), folder)
        assert not list(Path.cwd().iterdir())
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ui(finished: Path) -> Iterator[str]:
    """The address of the UI over the finished run: begun early, since it answers after seconds, and asked last."""
    port = free_port()
    code = f"from garda.runs import mlflow; mlflow.open_ui(mlflow.Path({str(finished)!r}), {port}, print)"
    command = [sys.executable, "-c", code]
    own = {**os.environ, mlflow_page.TOKEN: "secret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=own) as server:
        yield f"http://127.0.0.1:{port}"
        os.killpg(server.pid, signal.SIGTERM)
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}/?token=secret shows {finished} (Ctrl-C ends it)" in server.stdout.read()


@pytest.fixture
def used(out: Path, finished: Path) -> Path:
    """A run folder whose store already knows a run of another sequence (making a store from nothing takes seconds)."""
    shutil.copy(finished / "mlflow.db", out)
    return out


@pytest.fixture
def again(used: Path, finished: Path) -> Path:
    """The finished run, to go on with."""
    for name in ("tracking.json", "tracking.jsonl", "scores.csv"):
        shutil.copy(finished / name, used)
    return used


def test_a_store_gets_what_happened_in_order(out: Path):
    store = Recorder()
    whole_run(Journalled(out, store, pytest.fail), out)
    ended = ["stage_ended", "artifact"]
    kinds = [event.kind for event in store.taken.values()]
    assert kinds == ["start", *["losses"] * 6, *ended, "losses", *ended, "finish"]
    assert sorted(store.taken) == list(range(1, 14))
    assert store.points()[:2] == [("segmenter", 0, "dice", 1.0), ("segmenter", 0, "cross_entropy", 0.0)]
    assert [e.values["metrics"].keys() for e in store.taken.values() if e.kind == "stage_ended"] == [
        {"dice/SiteA/cord", "dice/SiteB/cord"},
        {"dice/SiteA/cord", "dice/SiteB/cord", "forgetting"},
    ]


def test_a_store_that_drips_holds_nothing_up(out: Path, monkeypatch: pytest.MonkeyPatch):
    store, told, answer, asked = Recorder(), list[str](), threading.Event(), list[int]()
    monkeypatch.setattr(journal, "DEADLINE_SECONDS", 0.05)
    monkeypatch.setattr(store, "deliver", lambda *given: asked.append(1) or answer.wait(20))
    tracker = begin(out, store, told.append)
    whole_run(tracker, out)
    assert len(told) == 1 and "tracking does not work (TimeoutError)" in told[0] and len(asked) == 1
    with pytest.raises(Undelivered, match="recorder: 0 of 18 metrics delivered; run the same command again"):
        tracker.check_delivered()
    answer.set()
    tracker._late.join()
    tracker.finish("finished")
    assert tracker.check_delivered() == "18 of 18 metrics delivered"


@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_store_that_is_down_is_told_once_and_caught_up(out: Path, fails: str):
    store, told = Recorder(), list[str]()
    store.fails = fails
    tracker = begin(out, store, told.append)
    learn(tracker)
    tracker.stage_ended("0-SiteA", 0, {"dice/SiteA/cord": 0.9})
    assert store.calls == 2  # not at every loss
    store.fails = None
    tracker.finish("finished")
    assert sorted(store.taken) == list(range(1, 10))
    assert len(store.points()) == len(set(store.points())) == 12
    assert told == [
        "recorder: tracking does not work (ConnectionError) and the run goes on; see that it can be reached and "
        "written, and what is missing is sent later, or when the same command is run again"
    ]


def test_a_store_gets_what_it_missed_of_earlier_processes(out: Path):
    down, other = Recorder(), Recorder()
    down.fails, other.name = "before", "other"
    whole_run(Journalled(out, down, lambda line: None), out)
    assert not down.taken
    down.fails = None
    begin(out, down)
    assert sorted(down.taken) == list(range(1, 15))
    begin(out, other)
    assert sorted(other.taken) == list(range(1, 16))
    assert json.loads((out / "tracking.json").read_text()).keys() == {"recorder", "other"}


def test_a_killed_run_that_repeats_steps_doubles_nothing(out: Path):
    store = Recorder()
    first = begin(out, store)
    learn(first, 0, 5)
    first.stage_ended("0-SiteA", 0, {"a": 1.0})  # killed: no finish, and steps 3 and 4 come again from the checkpoint
    second = begin(out, store)
    learn(second, 3, 8)
    second.stage_ended("0-SiteA", 0, {"a": 1.0, "b": 2.0})
    assert store.steps() == list(range(8))
    values = {kind: [e.values for e in store.taken.values() if e.kind == kind] for kind in ("start", "stage_ended")}
    assert [each["metrics"] for each in values["stage_ended"]] == [{"a": 1.0}, {"b": 2.0}]
    assert len({each["key"] for each in values["start"]}) == 1


def test_a_torn_line_is_left_out(out: Path):
    learn(begin(out, Recorder()), 0, 3)
    journal = out / "tracking.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    (out / "tracking.json").write_text("{")
    store = Recorder()
    second = begin(out, store)
    learn(second, 2, 4)
    second.finish("finished")
    assert store.steps() == [0, 1, 2, 3]
    begin(out, Recorder())
    lines = [line for line in journal.read_text().splitlines() if line.endswith("}}")]
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "3",
        "null",
        "[" * 100_000,
        '{"number": "9", "time": 1, "kind": "finish", "values": {"status": "finished"}}',
        '{"number": 9, "time": 1, "kind": "finish", "values": []}',
        '{"number": 9, "time": 1, "kind": "finish", "values": {"status": "unheard of"}}',
        '{"number": 9, "time": 1, "kind": "something", "values": {}}',
        '{"number": 9, "time": 1, "kind": "losses", "values": {"stage": "0-SiteA"}}',
        '{"number": 9, "time": 1, "kind": "losses", "values": {"stage": "a", "part": "", "step": 1, "values": [1]}}',
        '{"number": 9, "time": 1, "kind": "stage_ended", "values": {"stage": "a", "seen": 1, "metrics": {"a": "b"}}}',
        '{"number": 9, "time": 1, "kind": "artifact", "values": {"path": null}}',
        '{"number": 9, "time": 1, "kind": "start", "values": {"key": []}}',
        json.dumps({"number": 9, "time": 1, "kind": "start", "values": asdict(RUN) | {"key": 1}}),
    ],
)
def test_a_line_of_another_shape_is_left_out(out: Path, line: str):
    (out / "tracking.jsonl").write_text(f"{line}\n")
    store = Recorder()
    whole_run(Journalled(out, store, pytest.fail), out)
    assert sorted(store.taken) == list(range(1, 14))


def test_a_loss_that_is_not_finite_is_read_again(out: Path):
    begin(out, Recorder()).losses("0-SiteA", 4, {"dice": float("nan"), "ce": float("inf")})
    store = Recorder()
    second = begin(out, store)
    second.losses("0-SiteA", 4, {"dice": 1.0, "ce": 1.0})
    second.finish("finished")
    assert [name for _, _, name, _ in store.points()] == ["dice", "ce"]


@pytest.mark.parametrize(
    "state",
    [
        "[]",
        "7",
        '{"recorder": []}',
        *(
            f'{{"recorder": {{"delivered": {shape}}}}}'
            for shape in ('"2"', "-1", '2, "ids": ["a"]', '2, "ids": {"": 1}')
        ),
    ],
)
def test_deliveries_of_another_shape_are_made_again(out: Path, state: str):
    (out / "tracking.json").write_text(state)
    store = Recorder()
    whole_run(Journalled(out, store, pytest.fail), out)
    assert sorted(store.taken) == list(range(1, 14))
    assert json.loads((out / "tracking.json").read_text()) == {"recorder": {"delivered": 13, "ids": {}}}


def test_curves_can_be_watched_while_a_stage_goes_on(out: Path, monkeypatch: pytest.MonkeyPatch):
    store = Recorder()
    tracker = begin(out, store)
    now = time.monotonic()
    learn(tracker, 0, 1)
    assert not store.points()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    learn(tracker, 1, 2)
    assert len(store.points()) == 4


def test_a_loss_is_cheap(out: Path):
    tracker = begin(out, Recorder())
    begun = time.process_time()
    learn(tracker, 0, 500)
    assert (time.process_time() - begun) / 500 < 5e-4
    assert (out / "tracking.jsonl").stat().st_size < 500 * 300


def test_a_journal_that_cannot_be_written_is_told_once_and_the_store_served(out: Path):
    (out / "tracking.jsonl").mkdir()
    store, told = Recorder(), list[str]()
    tracker = begin(out, store, told.append)
    learn(tracker)
    tracker.finish("failed")
    assert len(store.taken) == 8
    (line,) = told
    assert line.startswith("tracking.jsonl: tracking does not work (IsADirectoryError)") and str(out) not in line


def test_an_artifact_outside_the_run_folder_is_refused(out: Path):
    with pytest.raises(ValueError, match="not in the subpath"):
        Journalled(out, Recorder(), pytest.fail).artifact(out.parent / "image.nii.gz")


def test_the_tracker_in_memory_remembers(out: Path):
    kept = InMemory()
    whole_run(kept, out)
    learn(kept, 4, 7)
    assert list(kept.curves["0-SiteA-segmenter", "cross_entropy"].values()) == [0, 1, 2, 3, 4, 5, 6]
    assert (kept.runs, kept.artifacts) == ([RUN], [out / "scores.csv"])
    assert (kept.metrics[1, "forgetting"], kept.status) == (0.1, "finished")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice/SiteA/white matter", "dice/SiteA/white matter"),
        ("dice/Ströme (3 T)/a", "dice/Ströme _3 T_/a"),
        ("/dice//../x/", "_/dice/_/_/x/_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_fit_mlflow(name: str, expected: str):
    from mlflow.utils.validation import _validate_metric_name

    assert mlflow_words.metric_name(name) == expected
    _validate_metric_name(mlflow_words.metric_name(name))


def test_settings_are_flattened_without_paths():
    settings = {"a": {"b": [1, 2], "c": None, "d": {}}, "e": "text", "w": "/home/me/vgg.pt", "long": "y" * 7000}
    assert mlflow_words.flatten(settings) == {
        "a.b": "[1, 2]", "a.c": "null", "a.d": "{}", "e": "text", "w": "vgg.pt", "long": "y" * 6000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        (None, "file://{out}/mlartifacts"),
        ("sqlite:////srv/all%20runs/mlflow.db?timeout=3", "file:///srv/all%2520runs/mlartifacts"),
        ("postgresql+psycopg2://me:secret@host/db", "file://{out}/mlartifacts"),
        ("https://me:secret@tracker", None),
    ],
)
def test_artifacts_go_beside_the_store(tmp_path: Path, uri: str | None, root: str | None):
    store = MLflow(tmp_path, uri)
    assert store._artifact_root == (root and root.format(out=tmp_path))
    assert "secret" not in store.name


def client_of(out: Path | str) -> Any:
    """Of a run folder, or of a server."""
    from mlflow import MlflowClient

    uri = out if isinstance(out, str) else f"sqlite:///{out / 'mlflow.db'}"
    return MlflowClient(uri, registry_uri=uri)


def runs_of(out: Path | str, name: str) -> dict[str, Any]:
    client = client_of(out)
    experiment = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def history(out: Path | str, run: Any, metric: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client_of(out).get_metric_history(run.info.run_id, metric))


def test_mlflow_shows_a_parent_with_its_stages(finished: Path, ui: str):
    runs = runs_of(finished, "phantom")
    parent = runs["garda_paper seed 3"]
    assert runs.keys() == {"garda_paper seed 3", "0-SiteA", "1-SiteB"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["1-SiteB"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert history(finished, parent, "dice/SiteB/cord") == [(1, 0.4), (2, 0.7)]
    assert history(finished, parent, "forgetting") == [(2, 0.1)]
    assert history(finished, runs["0-SiteA"], "loss/segmenter/cross_entropy") == [(s, float(s)) for s in range(6)]
    ids = {"": parent.info.run_id} | {name: runs[name].info.run_id for name in ("0-SiteA", "1-SiteB")}
    assert json.loads((finished / "tracking.json").read_text())["mlflow.db"]["ids"] == ids


def test_mlflow_has_settings_manifests_and_artifacts_and_no_path_but_its_own(finished: Path):
    parent = runs_of(finished, "phantom")["garda_paper seed 3"]
    settings = {"source.steps": "20", "source.rate": "0.1", "features.weights": "vgg19.pt"}
    assert parent.data.params == {"method": "garda_paper", "seed": "3"} | settings
    assert parent.data.tags["garda.manifest.SiteB"] == SHA[::-1]
    inputs = parent.inputs.dataset_inputs
    assert {(i.dataset.name, i.dataset.digest, i.tags[0].value, i.dataset.profile) for i in inputs} == {
        ("SiteA", SHA[:36], "source", '{"cases": {"train": 3, "val": 0, "test": 2}}'),
        ("SiteB", SHA[::-1][:36], "target", '{"cases": {"train": 4, "test": 1}}'),
    }
    assert [file.path for file in client_of(finished).list_artifacts(parent.info.run_id)] == ["scores.csv"]
    assert [file.read_text() for file in (finished / "mlartifacts").rglob("scores.csv")] == ["stage,dice\n0,0.9\n"]
    content = (finished / "mlflow.db").read_bytes()
    assert b"/home/me" not in content and b"elsewhere" not in content  # the working directory
    locations = {e.name: e.artifact_location for e in client_of(finished).search_experiments()}
    root = (finished / "mlartifacts").as_uri()
    assert locations == {"phantom": root, "Default": f"{root}/0"}


def test_mlflow_goes_on_with_the_same_runs(used: Path):
    run = replace(RUN, name="other")
    first = mlflow.open_tracker(used, pytest.fail)
    first.start(run)
    learn(first, 0, 4)
    first.finish("stopped")
    assert {run.info.status for run in runs_of(used, "other").values()} == {"KILLED"}
    longer = replace(run, stages=[*run.stages, "2-SiteC"], manifests=[*run.manifests, ("SiteC", SHA, {"test": 1})])
    second = mlflow.open_tracker(used, pytest.fail)
    second.start(longer)
    assert runs_of(used, "other")["garda_paper seed 3"].info.status == "RUNNING"
    learn(second, 2, 6)
    second.losses("2-SiteC-segmenter", 0, {"dice": 0.5})
    second.finish("finished")
    runs = runs_of(used, "other")
    assert runs.keys() == {"garda_paper seed 3", "0-SiteA", "2-SiteC"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [step for step, _ in history(used, runs["0-SiteA"], "loss/segmenter/dice")] == list(range(6))
    assert len(runs["garda_paper seed 3"].inputs.dataset_inputs) == 3


def test_a_stage_that_was_stopped_and_ended_later_is_finished(used: Path):
    run = replace(RUN, name="other")
    first = mlflow.open_tracker(used, pytest.fail)
    first.start(run)
    learn(first)
    first.finish("stopped")
    second = mlflow.open_tracker(used, pytest.fail)
    second.start(run)
    second.stage_ended("0-SiteA", 0, {"dice/SiteA/cord": 0.9})
    second.finish("finished")
    assert {run.info.status for run in runs_of(used, "other").values()} == {"FINISHED"}
    assert second.check_delivered() == "13 of 13 metrics delivered"


def test_a_store_that_is_another_one_gets_everything_again(again: Path):
    (again / "mlflow.db").unlink()
    tracker = mlflow.open_tracker(again, pytest.fail)
    tracker.start(RUN)
    runs = runs_of(again, "phantom")
    assert history(again, runs["garda_paper seed 3"], "dice/SiteB/cord") == [(1, 0.4), (2, 0.7)]
    assert len(history(again, runs["0-SiteA"], "loss/segmenter/dice")) == 6
    assert tracker.check_delivered() == "18 of 18 metrics delivered"


def delete_experiment(out: Path) -> None:
    client = client_of(out)
    (found,) = [each for each in client.search_experiments() if each.name == "phantom"]
    client.delete_experiment(found.experiment_id)


def delete_run(out: Path) -> None:
    client_of(out).delete_run(runs_of(out, "phantom")["garda_paper seed 3"].info.run_id)


def revise(version: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        with contextlib.closing(sqlite3.connect(out / "mlflow.db")) as database:
            database.execute("update alembic_version set version_num = ?", [version])
            database.commit()

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (delete_experiment, "its experiment 'phantom' was deleted, .*; restore it: mlflow experiments restore --exp"),
        (delete_run, "its run 'garda_paper seed 3' was deleted, .*; restore it: mlflow runs restore --run-id "),
        (revise("451aebb31d03"), "is the database of another version of MLflow, .*; name another store, install"),
        (revise("ffffffffffff"), "is the database of another version of MLflow, .*; name another store, install"),
        (lambda out: (out / "mlflow.db").write_bytes(b"half"), "is no whole SQLite database, .*; restore it, or move"),
    ],
    ids=["experiment deleted", "run deleted", "older", "newer", "half"],
)
def test_what_will_not_pass_is_told_as_such(again: Path, change, line: str, capfd):
    change(again)
    told = list[str]()
    tracker = mlflow.open_tracker(again, told.append)
    tracker.start(RUN)
    tracker.stage_ended("1-SiteB", 1, {"dice/SiteB/cord": 0.71})
    (found,) = told
    assert re.match(f"mlflow.db: {line}", found) and "the run goes on without" in found
    with pytest.raises(Undelivered, match="18 of 19 metrics delivered, ") as raised:
        tracker.check_delivered()
    assert raised.value.exit_code == 4
    assert len(capfd.readouterr().err.splitlines()) <= 1


def test_names_that_become_one_are_told(again: Path):
    told = list[str]()
    tracker = mlflow.open_tracker(again, told.append)
    tracker.start(RUN)
    tracker.stage_ended("1-SiteB", 1, {"dice/A (1)/cord": 0.7, "dice/A [1]/cord": 0.6})
    assert told[0].startswith("mlflow.db: 'dice/A (1)/cord' and 'dice/A [1]/cord' are one name there, and the run goes")


def test_no_file_appears_outside_the_folders_that_are_named(out: Path):
    home = out.parent / "home"
    home.mkdir()
    code = "import sys; from tests.runs import test_tracking as t; from pathlib import Path; out = Path(sys.argv[1]); "
    code += "import monai.handlers; t.whole_run(t.mlflow.open_tracker(out, print), out)"
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in (*mlflow.OFFLINE, "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    }
    clean |= {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2]), "GARDA_HOME": str(out / "own")}
    subprocess.run([sys.executable, "-c", code, str(out)], env=clean, check=True)
    assert (out / "mlflow.db").exists() and not [path for path in home.rglob("*") if path.is_file()]


def test_runs_of_one_sequence_stand_side_by_side(used: Path):
    tracker = mlflow.open_tracker(used, pytest.fail)
    tracker.start(replace(RUN, method="source_only"))
    tracker.finish("failed")
    runs = runs_of(used, "phantom")
    assert runs.keys() == {"garda_paper seed 3", "0-SiteA", "1-SiteB", "source_only seed 3"}
    assert runs["source_only seed 3"].info.status == "FAILED"


def test_events_sent_twice_to_a_store_elsewhere_change_nothing(used: Path, monkeypatch: pytest.MonkeyPatch):
    out, run = used.parent / "another run", replace(RUN, name="other")
    out.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{used}/mlflow.db")
    whole_run(mlflow.open_tracker(out, pytest.fail), out, run)
    assert list((used / "mlartifacts").rglob("scores.csv"))
    (out / "tracking.json").unlink()  # as if killed after sending and before taking note
    mlflow.open_tracker(out, pytest.fail).start(run)
    runs = runs_of(used, "other")
    assert len(client_of(used).search_runs([runs["0-SiteA"].info.experiment_id])) == 3
    assert history(used, runs["garda_paper seed 3"], "dice/SiteB/cord") == [(1, 0.4), (2, 0.7)]
    assert len(history(used, runs["0-SiteA"], "loss/segmenter/dice")) == 6
    assert {path.name for path in out.iterdir()} == {"scores.csv", "tracking.json", "tracking.jsonl"}


def test_mlflow_tells_nobody(used: Path, monkeypatch: pytest.MonkeyPatch):
    from mlflow.telemetry import client, get_telemetry_client, utils

    monkeypatch.setattr(utils, "_IS_IN_CI_ENV_OR_TESTING", False)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    client.set_telemetry_client()  # as if another library had imported MLflow first
    assert get_telemetry_client() is not None
    mlflow.open_tracker(used, pytest.fail).start(RUN)
    assert get_telemetry_client() is None


def test_a_server_that_does_not_answer_is_told_at_once(out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    told: list[str] = []
    begun = time.monotonic()
    whole_run(mlflow.open_tracker(out, told.append), out)
    assert time.monotonic() - begun < 10 and len(told) == 1
    assert "secret" not in told[0] + (out / "tracking.jsonl").read_text()


def test_decision_digest_and_card_of_a_stage_are_its_runs(used: Path):
    tracker = mlflow.open_tracker(used, pytest.fail)
    tracker.start(RUN)
    tracker.sealed("0-SiteA", "SiteA", {"decision": "source", "digest": "ab12"}, "# Card" + "x" * 6000)
    tracker.finish("finished")
    client = client_of(used)
    experiment = client.get_experiment_by_name("phantom")
    [stage] = client.search_runs([experiment.experiment_id], "tags.`garda.site` = 'SiteA'")
    parent = client.get_run(stage.data.tags["mlflow.parentRunId"])
    own = stage.data.tags
    assert (own["garda.decision"], own["garda.digest"]) == ("source", "ab12")
    assert parent.data.tags["garda.decision.SiteA"] == "source" and parent.data.tags["garda.digest.SiteA"] == "ab12"
    assert own["mlflow.note.content"].startswith("# Card") and len(own["mlflow.note.content"]) == 5000
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def ask(address: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer; nothing is followed."""
    place = urlsplit(address)
    body = b"{}" if method == "POST" else None
    kind = {"Content-Type": "application/json"} if body else {}
    with contextlib.closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        connection.request(method, address.removeprefix(f"http://{place.netloc}") or "/", body, kind | headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode(errors="replace")


def test_the_ui_shows_parent_stages_and_scores(ui: str, monkeypatch: pytest.MonkeyPatch):
    for _ in range(600):
        with contextlib.suppress(OSError):
            ask(f"{ui}/health")
            break
        time.sleep(0.1)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    runs = runs_of(ui, "phantom")
    parent = runs["garda_paper seed 3"]
    assert runs.keys() == {"garda_paper seed 3", "0-SiteA", "1-SiteB"}
    assert parent.data.metrics == {"dice/SiteA/cord": 0.8, "dice/SiteB/cord": 0.7, "forgetting": 0.1}
    assert history(ui, parent, "dice/SiteB/cord") == [(1, 0.4), (2, 0.7)]


def test_the_ui_answers_nobody_without_the_token(ui: str, finished: Path):
    run = runs_of(finished, "phantom")["garda_paper seed 3"].info.run_id
    for path in ("/", "/health", "/ajax-api/2.0/mlflow/experiments/get?experiment_id=1", f"/get-artifact?run_id={run}"):
        assert ask(ui + path)[0] == 401
        assert ask(ui + path, Cookie=f"garda-{urlsplit(ui).port}=secre")[0] == 401
        assert ask(ui + path, Authorization="Bearer ")[0] == 401
    assert ask(f"{ui}/?token=secre")[0] == 401
    status, headers, _ = ask(f"{ui}/?token=secret&a=b")
    assert (status, headers["location"]) == (303, "/?a=b")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    held = cookie.partition(";")[0]
    assert ask(ui, Cookie=held)[0] == 200
    assert ask(ui, Cookie=held, Host="evil.example")[0] == 403
    for origin in ("http://127.0.0.1:1", "http://evil.example", "null"):
        assert ask(ui, Cookie=held, Origin=origin)[0] == 403


def test_the_ui_reads_and_changes_nothing(ui: str, finished: Path):
    held, api = {"Cookie": f"garda-{urlsplit(ui).port}=secret"}, f"{ui}/ajax-api/2.0/mlflow"
    assert ask(f"{api}/runs/search", "POST", **held)[0] not in (401, 403)
    for path in ("experiments/create", "experiments/delete", "runs/delete", "runs/log-metric", "runs/set-tag"):
        assert ask(f"{api}/{path}", "POST", **held)[0] == 403
    for method in ("PUT", "DELETE", "PATCH"):
        assert ask(f"{ui}/api/2.0/mlflow-artifacts/artifacts/a", method, **held)[0] == 403


def test_the_ui_serves_files_of_its_own_folder_alone(ui: str, finished: Path):
    held = {"Cookie": f"garda-{urlsplit(ui).port}=secret"}
    run = runs_of(finished, "phantom")["garda_paper seed 3"].info
    place = Path(unquote(urlsplit(run.artifact_uri).path))
    name = next(path.name for path in place.iterdir() if path.is_file())
    asked = f"{ui}/get-artifact?run_uuid={run.run_id}&path="
    assert ask(asked + name, **held)[0] == 200
    link = place / "out"
    link.symlink_to("/etc")
    try:
        for path in ("../../../../../../etc/passwd", "/etc/passwd", "out/passwd"):
            status, _, text = ask(asked + path, **held)
            assert status in (400, 403) and "root:" not in text
        assert ask(f"{ui}/ajax-api/2.0/mlflow/artifacts/list?run_id={run.run_id}&path=out", **held)[0] == 403
    finally:
        link.unlink()
    with contextlib.closing(sqlite3.connect(finished / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET artifact_uri = 'file:///etc' WHERE run_uuid = ?", (run.run_id,))
    try:
        assert ask(asked + "passwd", **held)[0] == 403
        assert ask(f"{ui}/ajax-api/2.0/mlflow/artifacts/list?run_id={run.run_id}", **held)[0] == 403
    finally:
        with contextlib.closing(sqlite3.connect(finished / "mlflow.db")) as database, database:
            database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (run.artifact_uri, run.run_id))


def test_the_ui_is_for_this_machine_alone_and_sends_nothing_out(out: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    with pytest.raises(RunFolderError, match=re.escape(f"{out}: holds no mlflow.db; give the --out folder of")):
        mlflow.open_ui(out, free_port(), pytest.fail)
    (out / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^--port: port {port} cannot be opened \(address already in use\)"):
            mlflow.open_ui(out, port, pytest.fail)
    assert not calls
    mlflow.open_ui(out, free_port(), lambda line: None)
    [(_, command, environment)] = calls
    assert (mlflow_page.HOST, environment["MLFLOW_DISABLE_TELEMETRY"]) == ("127.0.0.1", "true")
    assert len(environment[mlflow_page.TOKEN]) >= 32 and environment[mlflow_page.TOKEN] not in command
