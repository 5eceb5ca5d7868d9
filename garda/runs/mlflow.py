"""MLflow as a store: a parent run for the sequence, a child run for each stage.

The experiment is the sequence's name and the parent run is called by method, label and seed, so that MLflow's
comparison view sets methods and seeds of one sequence side by side. The parent has the settings, the manifests as
dataset inputs, the artifacts, and the scores against the number of domains seen; a child has its stage's losses.

An SQLite store records absolute paths of its own folder (MLflow's ``artifact_uri``): artifacts of a store that was
moved are still files in ``mlartifacts``, but the UI no longer finds them. No other path is recorded.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import secrets
import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from garda import NO_USAGE
from garda.core import files
from garda.core.errors import ConfigError, RunFolderError
from garda.runs import mlflow_page, mlflow_words
from garda.runs.journal import Event, Journalled, LostError, PermanentError
from garda.runs.mlflow_page import HOST
from garda.runs.tracking import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Experiment, Metric, RunInfo

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
DIGEST_CHARACTERS, NOTE_CHARACTERS = 36, 5000  # the most that MLflow takes
NOTE_TAG, TRAINING_VIEW = "mlflow.note.content", {"mlflow.experimentKind": "custom_model_development"}
MOST_A_CALL = {"metrics": 1000, "params": 100, "tags": 100}
OFFLINE = NO_USAGE | {  # a hospital's network may end at the door, and a store that is down must not hold up training
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
ENDS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
KEY_TAG, STAGE_TAG, LABEL_TAG, PARENT_TAG = "garda.run", "garda.stage", "garda.label", "mlflow.parentRunId"


class MLflow:
    """A :class:`~garda.runs.journal.Store` in MLflow, by its client alone and without its global state."""

    def __init__(self, out: Path, uri: str | None = None, home: Path | None = None, label: str = "") -> None:
        """Nothing is opened before the first delivery.

        Args:
            out: the run folder.
            uri: MLflow's tracking URI; by default the file ``mlflow.db`` in ``home``.
            home: a folder for several runs; by default the run folder.
            label: stands in the run's name and is a tag; empty for none.
        """
        database = (home or out).resolve() / DATABASE
        self._out, self._label = out, label
        self._uri = uri or f"sqlite:///{database}"
        self.name = mlflow_words.without_secrets(uri) if uri else os.path.relpath(database, out.resolve())

    def deliver(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        """See :class:`~garda.runs.journal.Store`; each kind of event has its method.

        Raises:
            LostError: the ids are unknown: this is not the store that gave them.
            PermanentError: the store can be reached, and will not take this.
            Exception: whatever else MLflow raises.
        """
        from mlflow.exceptions import MlflowException

        try:
            for run_id in list(ids.values())[:1]:
                self._refuse_deleted(self._client.get_run(run_id).info)
            for kind, group in itertools.groupby(events, attrgetter("kind")):
                take = getattr(self, f"_{kind}")
                take(list(group), ids)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" and ids:
                raise LostError from None
            raise mlflow_words.explain(error) from None
        except Exception as error:
            raise mlflow_words.explain(error) from None

    @cached_property
    def _artifact_root(self) -> str | None:
        """Where artifacts of a database store go, as a URI; None lets a server decide."""
        scheme = urlsplit(self._uri).scheme.split("+")[0]
        if self._database is not None:
            return self._database.with_name(ARTIFACTS).as_uri()
        return (self._out.resolve() / ARTIFACTS).as_uri() if scheme in ("postgresql", "mysql", "mssql") else None

    @cached_property
    def _database(self) -> Path | None:
        """The file of an SQLite store."""
        if urlsplit(self._uri).scheme.split("+")[0] != "sqlite":
            return None
        return Path(self._uri.partition(":///")[2].partition("?")[0]).resolve()

    @cached_property
    def _client(self) -> MlflowClient:
        _silence()
        from mlflow import MlflowClient

        if self._artifact_root:
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            # the first to open a database notes a folder for MLflow's "Default" experiment: the working directory,
            # which may be the data folder, unless it is told another
            if self._database is not None and not self._database.exists():
                self._database.parent.mkdir(parents=True, exist_ok=True)
                with files.locked(self._database.parent):
                    if not self._database.exists():
                        with files.replacing(self._database) as draft:  # half a database would be of no use for good
                            SqlAlchemyStore(f"sqlite:///{draft}", self._artifact_root).engine.dispose()
            SqlAlchemyStore(self._uri, self._artifact_root)
        return MlflowClient(self._uri, registry_uri=self._uri)

    def _start(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        run = events[-1].values
        if "" not in ids:
            variant = f"{run['method']} ({self._label})" if self._label else run["method"]
            tags = {KEY_TAG: run["key"], STAGE_TAG: ""}
            ids[""] = self._make(self._experiment(run["name"]), f"{variant} seed {run['seed']}", tags, events[0].time)
        self._open(ids[""])
        tags = {f"garda.manifest.{domain}": digest for domain, digest, _ in run["manifests"]}
        tags |= {LABEL_TAG: self._label} if self._label else {}
        tags["garda.domains"] = " > ".join(domain for domain, _, _ in run["manifests"])
        self._log(ids[""], "tags", [RunTag(mlflow_words.metric_name(key), value) for key, value in tags.items()])
        parameters = mlflow_words.flatten({"method": run["method"], "seed": run["seed"]} | run["parameters"])
        self._log(ids[""], "params", [Param(key, value) for key, value in parameters.items()])
        datasets = [_dataset("target" if index else "source", *row) for index, row in enumerate(run["manifests"])]
        self._client.log_inputs(ids[""], datasets=datasets)

    def _losses(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        from mlflow.entities import Metric

        points: dict[str, list[Metric]] = defaultdict(list)
        for event in events:
            values = event.values
            names = ["/".join(filter(None, ("loss", values["part"], loss))) for loss in values["values"]]
            for key, value in zip(mlflow_words.distinct(names), values["values"].values(), strict=True):
                points[values["stage"]].append(Metric(key, value, event.time, values["step"]))
        for stage, metrics in points.items():
            child = self._child(stage, events[0].time, ids)
            self._open(child)
            self._log(child, "metrics", metrics)

    def _stage_ended(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        from mlflow.entities import Metric

        for event in events:
            seen, scores = event.values["seen"], event.values["metrics"]
            named = zip(mlflow_words.distinct(scores), scores.values(), strict=True)
            self._log(ids[""], "metrics", [Metric(name, value, event.time, seen) for name, value in named])
            child = self._child(event.values["stage"], event.time, ids)
            self._open(child)  # it may have been stopped, and learnt by a later process
            self._end(child, "FINISHED", event.time)

    def _artifact(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        """Send each file once, as it is now; one that is gone has nothing to show."""
        for path in dict.fromkeys(Path(event.values["path"]) for event in events):
            if (self._out / path).is_file():
                folder = path.parent.as_posix() if path.parent.name else None
                self._client.log_artifact(ids[""], str(self._out / path), folder)

    def _sealed(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        for event in events:
            told, note = event.values, {NOTE_TAG: event.values["card"][:NOTE_CHARACTERS]}
            own = {f"garda.{name}": value for name, value in {"site": told["site"], **told["facts"]}.items()} | note
            latest = {f"garda.{name}.{told['site']}": value for name, value in told["facts"].items()} | note
            for run_id, tags in ((self._child(told["stage"], event.time, ids), own), (ids[""], latest)):
                self._log(run_id, "tags", [RunTag(key, value) for key, value in tags.items()])

    def _finish(self, events: Sequence[Event], ids: dict[str, str]) -> None:
        event = events[-1]
        for run_id in reversed(ids.values()):
            self._end(run_id, ENDS[event.values["status"]], event.time)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return self._client.create_experiment(name, artifact_location=self._artifact_root, tags=TRAINING_VIEW)
        _refuse_deleted_experiment(found)
        return str(found.experiment_id)

    def _refuse_deleted(self, run: RunInfo) -> None:
        _refuse_deleted_experiment(self._client.get_experiment(run.experiment_id))
        if run.lifecycle_stage == "deleted":
            raise PermanentError(
                f"its run {run.run_name!r} was deleted", f"restore it: mlflow runs restore --run-id {run.run_id}"
            )

    def _child(self, stage: str, time: int, ids: dict[str, str]) -> str:
        if stage not in ids:
            parent = self._client.get_run(ids[""])
            tags = {KEY_TAG: parent.data.tags[KEY_TAG], STAGE_TAG: stage, PARENT_TAG: ids[""]}
            ids[stage] = self._make(parent.info.experiment_id, stage, tags, time)
        return ids[stage]

    def _make(self, experiment: str, name: str, tags: dict[str, str], time: int) -> str:
        """The run with these tags: found, if it was made just before a process was killed."""
        for run in self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'"):
            if run.data.tags.get(STAGE_TAG) == tags[STAGE_TAG]:
                return str(run.info.run_id)
        made = self._client.create_run(experiment, start_time=time, tags=tags, run_name=name)
        return str(made.info.run_id)

    def _open(self, run_id: str) -> None:
        if self._client.get_run(run_id).info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")

    def _end(self, run_id: str, status: str, time: int) -> None:
        if self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, status, time)

    def _log(self, run_id: str, kind: str, items: Sequence[Any]) -> None:
        """Send metrics, params or tags, no more in a call than MLflow takes."""
        for start in range(0, len(items), MOST_A_CALL[kind]):
            batch = {kind: items[start : start + MOST_A_CALL[kind]]}
            self._client.log_batch(run_id, **batch, synchronous=True)


def _refuse_deleted_experiment(found: Experiment) -> None:
    if found.lifecycle_stage == "deleted":
        remedy = f"restore it: mlflow experiments restore --experiment-id {found.experiment_id}"
        raise PermanentError(f"its experiment {found.name!r} was deleted", remedy)


def _silence() -> None:
    """Send nothing to MLflow's makers and print warnings alone, also where MONAI has imported MLflow before."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


def _dataset(context: str, domain: str, digest: str, cases: Mapping[str, int]) -> DatasetInput:
    """A manifest as MLflow's dataset: its name, its digest and how many cases it has, none of them named."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"manifest": f"{domain}.csv"}), json.dumps({"cases": dict(cases)})
    dataset = Dataset(domain, digest[:DIGEST_CHARACTERS], "manifest", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def open_ui(out: Path, port: int, tell: Callable[[str], None], *, write: bool = False) -> None:
    """Become MLflow's server over ``out/mlflow.db``, behind a token; does not return. Ctrl-C ends it.

    Args:
        out: a run folder, or another folder with an ``mlflow.db``.
        port: port on 127.0.0.1, 1 to 65535.
        tell: gets the address, in which the token stands.
        write: whether runs may be renamed, tagged and deleted.

    Raises:
        RunFolderError: there is no store in ``out``.
        GardaError: the port cannot be opened.
    """
    database = out.resolve() / DATABASE
    if not database.is_file():
        raise RunFolderError(out, f"holds no {DATABASE}", "give the --out folder of `garda run`")
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        what = f"port {port} cannot be opened ({files.reason(error)})"
        raise ConfigError("--port", what, "give another port") from None
    token = os.environ.get(mlflow_page.TOKEN) or secrets.token_urlsafe(24)
    tell(f"http://{HOST}:{port}/?token={token} shows {out} (Ctrl-C ends it)")
    sys.stdout.flush()
    command = [sys.executable, "-m", mlflow_page.__name__, str(database), str(database.with_name(ARTIFACTS)), str(port)]
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", mlflow_page.TOKEN: token}
    os.execve(sys.executable, command + ["--write"] * write, {**OFFLINE, **os.environ, **own})


def open_tracker(out: Path, tell: Callable[[str], None], home: Path | None = None, label: str = "") -> Tracker:
    """The tracker of the run folder ``out``; nothing is written before its ``start``.

    Args:
        out: the run folder. MLflow's store is ``mlflow.db`` in it, unless the environment variable
            ``MLFLOW_TRACKING_URI`` names another.
        tell: is told, once, that the store cannot be written.
        home: where ``mlflow.db`` lies instead, for runs that are to share one.
        label: tells variants of a method apart; empty for none.
    """
    return Journalled(out, MLflow(out, os.environ.get("MLFLOW_TRACKING_URI"), home, label), tell)
