"""Files that are either whole or not there, and folders for what must not stay."""

import csv
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from garda.core.errors import GardaError, RunFolderError

TORN = ".*.tmp"  # what a killed process may leave of a file that it was replacing


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Its name is always the same, so that the next attempt removes what a killed one has left. Others than its owner's
    group cannot read it; with ``private``, for what names patients, not the group either.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if private:  # from its first byte on
                temporary.unlink(missing_ok=True)
                temporary.touch(0o600)
            yield temporary
            with suppress(OSError):  # a memory stick knows no modes
                temporary.chmod(stat.S_IMODE(temporary.stat().st_mode) & (0o600 if private else 0o640))
            flush(temporary)  # so that the rename never names a torn file
            os.replace(temporary, path)
            flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path`` that takes the place of what is there when the block ends without an error.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    draft = path.absolute().with_name(f".{path.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with writing(path):
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir(mode=0o750)
            yield draft
            for written in [*draft.rglob("*"), draft]:
                flush(written)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(draft, path)
            flush(path.absolute().parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; not every file system can do so for a folder."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses within the block is told as one line about ``path``, as a ``RunFolderError``."""
    try:
        yield
    except OSError as error:
        raise describe(error, path) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, where it is there.

    Raises:
        RunFolderError: something in it cannot be removed.
    """
    with writing(folder):
        if folder.exists():
            shutil.rmtree(folder)


def write_csv(
    path: Path,
    heading: Sequence[str],
    lines: Iterable[Iterable[object]],
    note: str | None = None,
    *,
    private: bool = False,
) -> None:
    """Write a table, with a note repeated in a last column; the file appears whole or not at all.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    with replacing(path, private=private) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*heading, *(["note"] if note else [])])
        writer.writerows([*line, *([note] if note else [])] for line in lines)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def refuse_special(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which a reader might wait for without end.

    Raises:
        OSError: it is one, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(None, "it is a pipe, socket or device", str(path))


def read_bytes(path: Path) -> bytes:
    """What a file holds; errors as :func:`refuse_special`."""
    refuse_special(path)
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunFolderError: the file is damaged.
    """
    try:
        return json.loads(read_bytes(path).decode())
    except ValueError:
        raise RunFolderError(path, "is damaged", "give a new --out folder, or restore the file") from None
    except OSError as error:
        raise RunFolderError(path, f"cannot be read ({reason(error)})", "give a folder that can be read") from None


def describe(error: OSError, path: Path) -> GardaError:
    """A failed write as one line.

    >>> print(describe(OSError(errno.ENOSPC, "full"), Path("out")))
    out: no space left on the device; free some space and run the same command again
    """
    if error.errno == errno.ENOSPC:
        return RunFolderError(path, "no space left on the device", "free some space and run the same command again")
    return RunFolderError(path, f"cannot be written ({reason(error)})", "give a folder that can be written")


def reason(error: OSError) -> str:
    """What the system says, without the path."""
    return (os.strerror(error.errno) if error.errno else error.strerror or str(error)).lower()


@contextmanager
def private_temporary_folder() -> Iterator[Path]:
    """A folder of mode 0700 below a folder of garda's own in the system's temporary folder, removed with the block.

    A command that is killed removes nothing; :func:`remove_leftovers` of the next one does. While a process lives it
    holds a lock on its folder, which the system releases with the process.

    Raises:
        OSError: it cannot be made.
    """
    try:
        _home().mkdir(mode=0o700, exist_ok=True)
        with _locked(_home()):
            folder, lock = _make_private(_home())
    except OSError:  # somebody else has taken the name
        folder, lock = _make_private(None)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_private(home: Path | None) -> tuple[Path, int]:
    """A new folder below garda's own, or below the system's, where nobody sweeps it; and its lock."""
    folder = Path(tempfile.mkdtemp(prefix=".garda-", dir=home))
    lock = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def remove_leftovers() -> None:
    """Remove this user's private folders whose process lives no longer; whatever stands in the way is left alone."""
    with suppress(OSError), _locked(_home()):
        for folder in _home().iterdir():
            with _opened(folder) as lock, suppress(OSError):  # in use, or a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _home() -> Path:
    """Named for the user, so that nobody's sweep meets another's folders."""
    return Path(tempfile.gettempdir(), f".garda-private-{os.getuid()}")


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Nobody makes or sweeps a folder within the block. Refuses a link, and a folder that others own or may enter."""
    with _opened(home) as lock:
        found = os.fstat(lock)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{home} is not this user's alone")
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process is within such a block of the same folder, where the file system has locks."""
    with _opened(folder) as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A folder's descriptor; refuses a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
