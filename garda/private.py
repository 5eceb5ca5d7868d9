"""Folders for what must not stay: their owner's alone, gone with their command, or with the next one's start."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of mode 0700 below a folder of garda's own in the system's temporary folder, removed with the block.

    A command that is killed removes nothing; :func:`remove_leftovers` of the next one does. While a process lives it
    holds a lock on its folder, which the system releases with the process.

    Raises:
        OSError: it cannot be made, or somebody else has taken the name of garda's own folder.
    """
    home = _home()
    home.mkdir(mode=0o700, exist_ok=True)
    with _locked(home):
        folder = Path(tempfile.mkdtemp(dir=home))
        lock = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_leftovers() -> None:
    """Remove this user's private folders whose process lives no longer; whatever stands in the way is left alone."""
    with suppress(OSError):
        home = _home()
        if not home.exists():
            return
        with _locked(home):
            for folder in home.iterdir():
                _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # in use, or a file system without locks
        pass
    finally:
        os.close(lock)


def _home() -> Path:
    """Named for the user, so that nobody's sweep meets another's folders."""
    return Path(tempfile.gettempdir(), f".garda-private-{os.getuid()}")


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Nobody makes or sweeps a folder within the block. Refuses a link, and a folder that others own or may enter."""
    lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(lock)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{home} is not this user's alone")
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
