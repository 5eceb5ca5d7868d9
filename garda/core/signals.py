"""Ctrl-C and SIGTERM: training writes a checkpoint first, everything else stops where it is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from garda.core.errors import Interrupted

LEADER = "GARDA_LEADER"  # environment variable: the process of rank zero, which has started this one to share its work
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


class Stopping:
    """A request to stop, from a signal or from code."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._waiting = False
        self._deaf = False

    def ignore(self) -> None:
        """From here on no signal counts: rank zero says when this process ends."""
        self._deaf = True

    @contextmanager
    def listening(self) -> Iterator[Stopping]:
        """Handle SIGINT and SIGTERM within the block."""
        before = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal only sets :attr:`exit_code`; the code in it looks there at safe points."""
        before, self._waiting = self._waiting, True
        try:
            yield
        finally:
            self._waiting = before

    def check(self, where: str) -> None:
        """Look whether a stop was asked for.

        Raises:
            Interrupted: it was.
        """
        if self.exit_code is not None:
            raise Interrupted(where, self.exit_code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deaf:
            return
        self.exit_code = EXIT_CODES[signal.Signals(number)]
        if not self._waiting:
            raise Interrupted("garda", self.exit_code)
