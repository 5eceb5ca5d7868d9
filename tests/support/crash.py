"""Commands that end before a given operation on their files, or on a disk that fills up."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from garda.core.errors import GardaError
from garda.core.files import TORN
from garda.runs import context

KILLED, DONE, REFUSED, BROKEN = 9, 0, 2, 1
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
Command = Callable[[Path], object]


def run(command: Command, folder: Path, last: int | None = None, *, torn: bool = False) -> tuple[int, int]:
    """Run a command in a process of its own.

    Args:
        command: takes the folder that it writes to.
        folder: only what happens below it counts.
        last: the operation before which the process dies; None lets it end.
        torn: whether a file that was about to take its place is cut in half first, as a lost page leaves it.

    Returns:
        how it ended, and the number of operations.
    """
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        code, seen = BROKEN, [0]
        try:
            _without_seconds()
            sys.addaudithook(partial(_look, folder.as_posix(), seen, last, torn))
            command(folder)
            code = DONE
        except GardaError as error:
            print(error, file=sys.stderr)
            code = REFUSED
        except BaseException:
            traceback.print_exc()
        os.write(writer, seen[0].to_bytes(8, "big"))
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        count = int.from_bytes(pipe.read(), "big")
    return os.waitstatus_to_exitcode(status), count


def _look(folder: str, seen: list[int], last: int | None, torn: bool, event: str, arguments: tuple) -> None:
    if event != "open" and event not in CHANGES:
        return
    path = arguments[0]
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(folder):
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return
    seen[0] += 1
    if seen[0] == last:
        if torn and event == "os.rename" and Path(path).match(TORN):
            os.truncate(path, os.path.getsize(path) // 2)
        os._exit(KILLED)


def _without_seconds() -> None:
    """The seconds of training stand in the ledger, and differ from run to run."""
    context._note_seconds = lambda run, name, seconds: context._record(run.seconds_file, name, 0.0)


def on_disk_of(size: int, command: Command, folder: Path) -> tuple[int, int]:
    """As :func:`run`, on a disk with room for ``size`` more bytes of files that are written as a whole."""
    left = [size]
    plain = Path.write_bytes, Path.write_text

    def take(path: Path, contents: bytes) -> None:
        if path.as_posix().startswith(folder.as_posix()):
            left[0] -= len(contents)
            if left[0] < 0:
                plain[0](path, contents[: len(contents) + left[0]])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def write_bytes(path: Path, contents: bytes) -> int:
        take(path, bytes(contents))
        return plain[0](path, contents)

    def write_text(path: Path, contents: str, *arguments: object, **others: object) -> int:
        take(path, contents.encode())
        return plain[1](path, contents, *arguments, **others)

    def limited(folder: Path) -> None:
        Path.write_bytes, Path.write_text = write_bytes, write_text
        command(folder)

    return run(limited, folder)


def contents(folder: Path) -> dict[str, bytes]:
    """What travels or is shown, by name; not what only a process needs, and not the seconds."""
    beside = {".lock", "seconds.json"}
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in beside)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}
