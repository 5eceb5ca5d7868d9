"""Errors a user can cause, each one line: *where: what; remedy*.

    GardaError            exit code 2
    ├── ConfigError       a YAML file does not say what it must
    ├── DataError         a manifest, an image or a label is not usable
    ├── RunFolderError    a run folder holds something else, or cannot be written
    ├── CheckpointError   a checkpoint or a weights file cannot be read
    ├── TrainingError     a loss stopped being a number
    ├── PackageError      a package is damaged, or is not what its ledger says
    ├── Refused           a target's stage did not pass the gate; exit code 3
    ├── Undelivered       all is done, but the tracking store has not got every metric; exit code 4
    └── Problems          several of these in one go
    Interrupted           Ctrl-C (exit code 130) or SIGTERM (exit code 75), after a checkpoint

Anything else is a defect of garda and keeps its traceback.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Text as it may be printed: what a file says cannot move a cursor or change colours.

    >>> printable("left\x1b[2Jventricle")
    'left?[2Jventricle'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class GardaError(Exception):
    """One line for the user.

    Args:
        where: the file, manifest row or stage concerned.
        what: what was wanted and what came.
        remedy: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, where: object, what: str, remedy: str) -> None:
        self.where, self.what, self.remedy = str(where), what, remedy
        super().__init__(f"{where}: {what}; {remedy}")

    def moved(self, here: object, there: object) -> GardaError:
        """The same error, its place ``here`` called ``there``."""
        return type(self)(self.where.replace(str(here), str(there)), self.what, self.remedy)


class ConfigError(GardaError):
    """A YAML file does not say what it must."""


class DataError(GardaError):
    """A manifest, an image or a label is not usable."""


class RunFolderError(GardaError):
    """A run folder holds something else, or cannot be written."""


class CheckpointError(GardaError):
    """A checkpoint or a weights file cannot be read."""


class TrainingError(GardaError):
    """A loss stopped being a number."""


class PackageError(GardaError):
    """A package is damaged, was changed, or is not what its ledger says."""


class Refused(GardaError):
    """A target's stage did not pass the gate; the package stays what it was."""

    exit_code = 3


class Undelivered(GardaError):
    """All is done, but the tracking store has not got every metric."""

    exit_code = 4


class Interrupted(BaseException):
    """The command was asked to stop; no ``except Exception`` on the way may swallow that.

    Args:
        where: the stage, or the program.
        exit_code: 130 for Ctrl-C, 75 for SIGTERM.
    """

    def __init__(self, where: object, exit_code: int) -> None:
        super().__init__(f"{where}: stopped on request; run the same command again to go on from here")
        self.exit_code = exit_code


class Problems(GardaError):
    """Several errors found in one go, a line each.

    Args:
        problems: the errors, in the order in which they were found; at least one.
    """

    def __init__(self, problems: list[GardaError]) -> None:
        self.problems = problems
        Exception.__init__(self, "\n".join(str(problem) for problem in problems))

    def moved(self, here: object, there: object) -> GardaError:
        """All of them moved."""
        return Problems([problem.moved(here, there) for problem in self.problems])


def raise_all(problems: list[GardaError]) -> None:
    """Raise the only problem as it is, several as :class:`Problems`; no problem is no error.

    >>> raise_all([])
    >>> raise_all([DataError("a.csv:2", "patient is empty", "fill the cell")])
    Traceback (most recent call last):
    garda.core.errors.DataError: a.csv:2: patient is empty; fill the cell

    Raises:
        GardaError: there is a problem.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)
