"""Folders for what must not stay: their owner's alone, gone with their command, or with the next one's start."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "garda-"
NEW = 60  # seconds within which a folder may not have its lock yet


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of mode 0700 below the system's temporary folder, removed when the block ends.

    A command that is killed removes nothing; :func:`remove_leftovers` of the next one does. While a process lives it
    holds a lock on its folder, which the system releases with the process.

    Raises:
        OSError: it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as made:
        lock = os.open(made, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(made)
        finally:
            os.close(lock)


def remove_leftovers() -> None:
    """Remove this user's private folders whose process lives no longer."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another's, no folder, or gone by now
            continue
        try:
            found = os.fstat(lock)
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > NEW:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # in use
            pass
        finally:
            os.close(lock)
