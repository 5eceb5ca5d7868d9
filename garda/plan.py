"""What a run folder is for: ``plan.json``, and whether a command may go on in it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from garda import __version__
from garda.errors import RunFolderError
from garda.files import describe, read_json, write_json
from garda.methods import SharedSettings, deciding_settings
from garda.sequence import DomainSequence


def make_plan(sequence: DomainSequence, settings: SharedSettings) -> dict[str, Any]:
    """Everything that decides a run's result, as plain values; no path, no patient."""
    plan = {
        "garda": __version__,
        "name": sequence.name,
        "method": sequence.method,
        "seed": sequence.seed,
        "task": sequence.task.model_dump(mode="json"),
        "settings": deciding_settings(sequence.method, settings),
        "domains": [{"name": domain.name, "manifest": sequence.digests[domain.name]} for domain in sequence.domains],
    }
    plain: dict[str, Any] = json.loads(json.dumps(plan))
    return plain


@contextmanager
def claim(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the run folder ``out`` for this plan.

    A new folder takes the plan; one that holds the same plan goes on; one whose targets are a beginning of the plan's
    targets is extended.

    Raises:
        RunFolderError: the folder holds another plan (names the first key that differs), is in use by another process,
            or cannot be written.
    """
    check_folder(out, plan)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise describe(error, out) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(out, "is in use by another run", "wait for it, or give another --out") from None
        for torn in out.glob(".*.tmp"):  # of a killed process
            torn.unlink(missing_ok=True)
        write_json(out / "plan.json", plan)
        yield


def check_folder(out: Path, plan: dict[str, Any]) -> None:
    """Look whether :func:`claim` would take ``out``, and write nothing; errors as there."""
    file = out / "plan.json"
    if file.exists():
        _compare(file, read_json(file), plan)
    elif out.exists() and (not out.is_dir() or any(path.name != ".lock" for path in out.iterdir())):
        raise RunFolderError(out, "holds something that is not a run of garda", "give a new --out folder")


def read_plan(run: Path) -> dict[str, Any]:
    """The plan of an existing run folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    if not (run / "plan.json").is_file():
        raise RunFolderError(run, "is not a run folder", "give the --out folder of `garda run`")
    return read_json(run / "plan.json")


def _compare(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    shorter = {**new, "domains": new["domains"][: len(old.get("domains", []))]}
    difference = _first_difference(old, shorter, "")
    if difference is None and len(new["domains"]) < len(old["domains"]):
        difference = "domains"
    if difference is not None:
        raise RunFolderError(
            file, f"the folder holds another plan, {difference} differs", "undo the change, or give a new --out folder"
        )


def _first_difference(old: Any, new: Any, key: str) -> str | None:
    """The first key, depth first, under which two plans differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(name, old.get(name), new.get(name)) for name in sorted({*old, *new})]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else key
    inner = (_first_difference(a, b, f"{key}.{name}" if key else name) for name, a, b in pairs)
    return next((found for found in inner if found is not None), None)
