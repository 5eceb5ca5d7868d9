"""What a run folder is for: ``plan.json``, and whether a command may go on in it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from garda.config import Config
from garda.errors import RunFolderError
from garda.files import describe, read_json, reason, write_json

TORN = ".*.tmp"  # what a killed process may leave of a file that it was replacing


FORMAT = 1  # of packages


class PlannedDomain(Config):
    """A domain's name and the SHA-256 of its manifest file."""

    name: str
    manifest: str


class Setup(Config):
    """What decides every stage of a sequence, at whichever site, as plain values; no path, no patient.

    Attributes:
        format: of the package that holds it.
        garda: version that learnt the source.
        name: the sequence's name.
        method: the method's name.
        seed: seed of everything random.
        task: see :class:`garda.sequence.Task`.
        settings: see :func:`garda.settings.deciding_settings`.
    """

    format: int = FORMAT
    garda: str
    name: str
    method: str
    seed: int
    task: dict[str, Any]
    settings: dict[str, Any]


class Plan(Setup):
    """Everything that decides a run's result: the contents of ``plan.json``.

    Attributes:
        pseudonyms: a check value of the key behind the pseudonyms in ``scores.csv``, so that no run mixes two.
        domains: source and targets, in order; the manifest of one that another site has learnt is empty.
        package: digest of the package that the run goes on from; empty where it begins with the source.
        forced: whether what the gate refuses is kept.
    """

    pseudonyms: str
    domains: tuple[PlannedDomain, ...]
    package: str = ""
    forced: bool = False

    @property
    def setup(self) -> Setup:
        """What also decides the stages of other sites."""
        return Setup.model_validate(self.model_dump(include={*Setup.model_fields}))


@contextmanager
def claim(out: Path, plan: Plan) -> Iterator[None]:
    """Hold the run folder ``out`` for this plan.

    A new folder takes the plan; one that holds the same plan goes on; one whose targets are a beginning of the plan's
    targets is extended.

    Raises:
        RunFolderError: the folder holds another plan (names the first key that differs), is in use by another process,
            or cannot be written.
    """
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
        except OSError as error:
            raise describe(error, out / ".lock") from error
        check_folder(out, plan)
        for torn in out.glob(TORN):
            torn.unlink(missing_ok=True)
        write_json(out / "plan.json", plan.model_dump(mode="json"))
        yield


def check_folder(out: Path, plan: Plan) -> None:
    """Look whether :func:`claim` would take ``out``, and write nothing; errors as there."""
    try:
        foreign = out.exists() and (not out.is_dir() or any(map(_is_foreign, out.iterdir())))
        planned = (out / "plan.json").exists()
    except OSError as error:
        raise RunFolderError(out, f"cannot be read ({reason(error)})", "give another --out folder") from None
    if planned:
        _compare(out / "plan.json", read_plan(out), plan)
    elif foreign:
        raise RunFolderError(out, "holds something that is not a run of garda", "give a new --out folder")


def _is_foreign(path: Path) -> bool:
    """True for what a run that was killed at its very start cannot have left."""
    return path.name != ".lock" and not path.match(TORN)


def read_plan(run: Path) -> Plan:
    """The plan of an existing run folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    file = run / "plan.json"
    if not file.exists():
        raise RunFolderError(run, "is not a run folder", "give the --out folder of `garda run`")
    try:
        return Plan.model_validate(read_json(file))
    except ValueError:
        raise RunFolderError(file, "is damaged", "give a new --out folder, or restore the file") from None


def _compare(file: Path, old: Plan, new: Plan) -> None:
    shorter = new.model_copy(update={"domains": new.domains[: len(old.domains)]})
    difference = differing_key(old.model_dump(mode="json"), shorter.model_dump(mode="json"))
    if difference is not None:
        raise RunFolderError(
            file, f"the folder holds another plan, {difference} differs", "undo the change, or give a new --out folder"
        )


def differing_key(old: Any, new: Any, key: str = "") -> str | None:
    """The first key, depth first, under which two trees of plain values differ; None if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(name, old.get(name), new.get(name)) for name in sorted({*old, *new})]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else key
    inner = (differing_key(a, b, f"{key}.{name}" if key else name) for name, a, b in pairs)
    return next((found for found in inner if found is not None), None)
