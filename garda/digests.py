"""Which scans were found to have the digests of their manifest, so that they need not be hashed at every start.

What is remembered of a scan is a mark: one keyed hash over its files' paths, sizes, inodes and times, and the digest
that they had. A mark names nothing, and who lacks the key can neither make one nor test a guess. A file that changes
afterwards has another mark, which nobody remembers.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from garda.errors import GardaError
from garda.files import replacing
from garda.formats import Recorded, files_of, has_digest
from garda.pseudonyms import Pseudonyms, load_key, own_folder

MARKS = "verified.txt"  # beside the key: a mark a line, the latest last
MOST = 100_000  # marks that are kept, 6.5 MB
MARK = re.compile(r"[0-9a-f]{64}")
SETTLED_SECONDS = 10  # a file may change again without a new time: clocks are coarse, and servers' clocks are off


class FileState(NamedTuple):
    """What tells that a file has changed; times of modification and of change in ns."""

    path: str
    size: int
    inode: int
    modified: int
    changed: int


class VerifiedDigests:
    """Compares scans with their digests, and remembers at the end of a ``with`` block which ones fitted.

    Where there is no key, or its folder cannot be written, nothing is remembered and every scan is hashed.
    """

    def __init__(self, folder: Path | None = None, *, rehash: bool = False) -> None:
        """Remember in ``folder``, by default that of the key; ``rehash`` trusts nothing that was found before."""
        self._folder = folder or own_folder()
        self._rehash = rehash
        self._confirmed: dict[str, None] = {}  # an ordered set
        self._refuted: set[str] = set()

    def __enter__(self) -> VerifiedDigests:
        """Nothing is read before the first scan that has a digest."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remember, also after an error or a stop: what has been found stays found."""
        self.save()

    def fit(self, scan: Path, recorded: Recorded) -> bool:
        """Whether a scan has the digest; hashed, unless it was found so before and no file has changed since.

        Args:
            scan: a path as :func:`garda.formats.digest` takes it.
            recorded: SHA-256 and bytes.

        Raises:
            DataError: a file is missing or cannot be read.
        """
        if self._pseudonyms is None:
            return has_digest(scan, recorded)
        looked, states = time.time_ns(), _look(scan)
        mark = self._pseudonyms.digest("verified", json.dumps([recorded, states]))
        if mark in self._confirmed or (mark in self._known and not self._rehash):
            self._confirmed[mark] = None
            return True
        fits = has_digest(scan, recorded)
        if not fits:
            self._refuted.add(mark)
        elif _are_settled(states, looked) and _look(scan) == states:
            self._confirmed[mark] = None
        return fits

    def save(self) -> None:
        """Add what has been found to what is remembered; of two processes at once, the later one's is kept."""
        new = self._confirmed.keys() | self._refuted
        if not new:
            return
        marks = [*(mark for mark in _read(self._folder / MARKS) if mark not in new), *self._confirmed][-MOST:]
        with suppress(GardaError), replacing(self._folder / MARKS) as temporary:
            temporary.touch(0o600)
            temporary.write_text("".join(f"{mark}\n" for mark in marks), encoding="ascii")

    @cached_property
    def _pseudonyms(self) -> Pseudonyms | None:
        try:
            return Pseudonyms(load_key(self._folder))
        except GardaError:
            return None

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(_read(self._folder / MARKS))


def _read(file: Path) -> list[str]:
    """The marks of a file, without what is damaged."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if MARK.fullmatch(line)]


def _look(scan: Path) -> list[FileState]:
    """The state of each file of a scan; none where one of them cannot be looked at."""
    try:
        found = [(os.path.abspath(file), file.stat()) for file in files_of(scan)]
    except OSError:
        return []
    return [FileState(path, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for path, s in found]


def _are_settled(states: list[FileState], looked: int) -> bool:
    """Whether all files have times, and were left alone long enough before ``looked`` for a change to give others."""
    latest = looked - SETTLED_SECONDS * 10**9
    return bool(states) and all(0 < max(state.modified, state.changed) < latest for state in states)
