"""Whether a command may go on in a run folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from garda.core import files
from garda.core.errors import RunFolderError
from garda.handover import setup
from garda.handover.setup import Plan


@contextmanager
def claim(out: Path, planned: Plan) -> Iterator[None]:
    """Hold the run folder ``out`` for this plan.

    A new folder takes the plan; one that holds the same plan goes on; one whose targets are a beginning of the plan's
    targets is extended.

    Raises:
        RunFolderError: the folder holds another plan (names the first key that differs), is in use by another process,
            or cannot be written.
    """
    with files.writing(out):
        out.mkdir(mode=0o700 if planned.package else 0o750, parents=True, exist_ok=True)  # a hop's is its owner's alone
        lock = (out / ".lock").open("w")
    with lock:
        with files.writing(out / ".lock"):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(out, "is in use by another run", "wait for it, or give another --out") from None
        check_folder(out, planned)
        for torn in out.rglob(files.TORN):
            torn.unlink(missing_ok=True)
        files.write_json(out / "plan.json", planned.model_dump(mode="json"))
        yield


def check_folder(out: Path, planned: Plan) -> None:
    """Look whether :func:`claim` would take ``out``, and write nothing; errors as there."""
    try:
        foreign = out.exists() and (not out.is_dir() or any(map(_is_foreign, out.iterdir())))
        known = (out / "plan.json").exists()
    except OSError as error:
        raise RunFolderError(out, f"cannot be read ({files.reason(error)})", "give another --out folder") from None
    if known:
        _compare(out / "plan.json", setup.read_plan(out), planned)
    elif foreign:
        raise RunFolderError(out, "holds something that is not a run of garda", "give a new --out folder")


def _is_foreign(path: Path) -> bool:
    """True for what a run that was killed at its very start cannot have left."""
    return path.name != ".lock" and not path.match(files.TORN)


def _compare(file: Path, old: Plan, new: Plan) -> None:
    if old.format != new.format:
        what = f"is a run of garda {old.garda}, which this version reads but does not go on with"
        raise RunFolderError(file, what, "give a new --out folder, or finish it with the version that began it")
    shorter = new.model_copy(update={"domains": new.domains[: len(old.domains)]})
    difference = "pseudonyms" if old.pseudonyms != new.pseudonyms else None  # which key all other digests
    difference = difference or setup.differing_key(old.model_dump(mode="json"), shorter.model_dump(mode="json"))
    if difference is not None:
        raise RunFolderError(
            file, f"the folder holds another plan, {difference} differs", "undo the change, or give a new --out folder"
        )
