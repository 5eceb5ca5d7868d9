"""What the user sees while a command runs: lines, tables, and bars on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from garda.core.errors import printable

WIDEST = 1000  # columns of a table that is not shown on a terminal


class Console:
    """Tells what happens; draws bars only on a terminal, so that logs stay short. A context manager."""

    def __init__(self, console: RichConsole | None = None) -> None:
        """Report to ``console``, or to standard output."""
        self._console = console or RichConsole(highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            self._console.width = WIDEST
        columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        hidden = not self._console.is_terminal
        self._bars = Progress(*columns, console=self._console, transient=True, disable=hidden)

    def __enter__(self) -> Console:
        """Start drawing bars."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bars."""
        self._bars.stop()

    def line(self, text: str) -> None:
        """One line of plain text."""
        self._console.print(printable(text), markup=False)

    def show(self, what: RenderableType) -> None:
        """A table or another rich object; in a file or a pipe as wide as it wants to be: no number is broken."""
        self._console.print(what)

    def bar(self, name: str) -> Callable[[int, int], None]:
        """A bar that appears when it is first told (done, total), and leaves a line with its time at the end."""
        started = time.monotonic()
        task = None

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = self._bars.add_task(name)
            self._bars.update(task, completed=done, total=total)
            if done >= total:
                self._bars.remove_task(task)
                self.line(f"{name}: {time.monotonic() - started:.0f} s")

        return advance
