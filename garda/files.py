"""Files that are either whole or not there: written to a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from garda.errors import GardaError, RunFolderError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise describe(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunFolderError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RunFolderError(path, "is damaged", "give a new --out folder, or restore the file") from None
    except OSError as error:
        raise RunFolderError(path, f"cannot be read ({reason(error)})", "give a folder that can be read") from None


def describe(error: OSError, path: Path) -> GardaError:
    """A failed write as one line."""
    if error.errno == errno.ENOSPC:
        return RunFolderError(path, "no space left on the device", "free some space and run the same command again")
    return RunFolderError(path, f"cannot be written ({reason(error)})", "give a folder that can be written")


def reason(error: OSError) -> str:
    """What the system says, without the path."""
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


def _flush(path: Path) -> None:
    """Wait until the file's bytes have reached the disk, so that the rename never names a torn file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
