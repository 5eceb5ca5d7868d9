"""The finished runs of a comparison, gathered into the rows of its table."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from garda.config import Config
from garda.errors import RunFolderError
from garda.evaluate import Score, read_scores
from garda.files import read_json
from garda.handover.package import KNOWLEDGE, stage_folder
from garda.methods import METHODS, Bound
from garda.plan import Plan, PlannedDomain, read_plan
from garda.settings import Settings


class Common(Config):
    """What all runs of a comparison have in common: the contents of ``comparison.json``.

    Attributes:
        garda: version that makes the runs.
        name: the sequence's name.
        pseudonyms: as in :class:`garda.plan.Plan`; patients of two runs can be paired only under one key.
        task: see :class:`garda.sequence.Task`.
        domains: source and targets, in order.
        settings: all settings that methods share, the source's lesson among them, before a variant changes them.
        configs: SHA-256 of each configuration file that runs have been asked for with; they may differ in what one
            method alone reads, since all runs of a row must agree on that anyway.
    """

    garda: str
    name: str
    pseudonyms: str
    task: dict[str, object]
    domains: tuple[PlannedDomain, ...]
    settings: dict[str, object]
    configs: tuple[str, ...]


_OF_A_PLAN = ("garda", "name", "pseudonyms", "task", "domains")


def common_part(plan: Plan, settings: Settings, config: str) -> Common:
    """What a run has in common with other methods' and seeds'.

    Args:
        plan: of any method and seed.
        settings: parsed ones; the plan lacks those that its own method does not read.
        config: SHA-256 of the configuration file.
    """
    shared = settings.model_dump(mode="json", include=set(Settings.model_fields))
    values = plan.model_dump(mode="json", include=set(_OF_A_PLAN))
    return Common.model_validate({**values, "settings": shared, "configs": [config]})


def first_difference(a: Common | Plan, b: Common) -> str | None:
    """The first key in which two differ, settings left aside, which a variant may change."""
    return next((key for key in _OF_A_PLAN if getattr(a, key) != getattr(b, key)), None)


def first_setting(a: Common, b: Common) -> str | None:
    """The first block of the shared settings in which two differ, such as ``settings.source``."""
    keys = sorted({*a.settings, *b.settings})
    return next((f"settings.{key}" for key in keys if a.settings.get(key) != b.settings.get(key)), None)


@dataclass(frozen=True)
class FinishedRun:
    """What one run has left.

    Attributes:
        scores: of every stage.
        seconds: spent on training, what was taken from the shelf included; NaN where it was not noted.
        bytes_first: what is kept after the source's stage; NaN where it is gone.
        bytes_last: what is kept after the last stage; NaN where it is gone.
    """

    scores: list[Score]
    seconds: float
    bytes_first: float
    bytes_last: float


@dataclass(frozen=True)
class Row:
    """A method, or a variant of one, with every seed that has been finished.

    Attributes:
        method: the method's name.
        label: tells a variant from the method as configured; empty for the latter.
        runs: seed -> run, by rising seed; at least one.
    """

    method: str
    label: str
    runs: dict[int, FinishedRun]

    @property
    def name(self) -> str:
        """As the table calls it."""
        return row_name(self.method, self.label)

    @property
    def bound(self) -> bool:
        """Whether the method is outside the contract."""
        return issubclass(METHODS[self.method], Bound)

    @property
    def scores(self) -> list[Score]:
        """Those of all seeds."""
        return [score for run in self.runs.values() for score in run.scores]


def row_name(method: str, label: str) -> str:
    """``method``, or ``method (label)`` for a variant."""
    return f"{method} ({label})" if label else method


def run_folder(out: Path, method: str, label: str, seed: int) -> Path:
    """The folder of one run, below the comparison's ``out``; no method's name holds a hyphen."""
    return out / "runs" / (f"{method}-{label}" if label else method) / f"seed-{seed}"


def find_rows(out: Path, common: Common) -> list[Row]:
    """Every row with a finished run, rows under the contract first, each part by name.

    Raises:
        RunFolderError: a run belongs to another comparison, or a file is damaged.
    """
    found: dict[tuple[str, str], dict[int, FinishedRun]] = defaultdict(dict)
    for file in sorted(out.glob("runs/*/seed-*/plan.json")):
        plan = read_plan(file.parent)
        check_belongs(file.parent, plan, common)
        run = read_run(file.parent, plan)
        if run is not None:
            label = file.parent.parent.name.removeprefix(plan.method).removeprefix("-")
            found[plan.method, label][plan.seed] = run
    rows = [Row(method, label, dict(sorted(runs.items()))) for (method, label), runs in found.items()]
    return sorted(rows, key=lambda row: (row.bound, row.name))


def check_belongs(folder: Path, plan: Plan, common: Common) -> None:
    """Refuse a run of something else; a variant may have another source lesson.

    Raises:
        RunFolderError: names the first key that differs.
    """
    difference = first_difference(plan, common)
    if difference is None and plan.method not in METHODS:
        difference = "method"
    if difference is not None:
        raise RunFolderError(folder, f"is a run of another comparison, {difference} differs", "move it elsewhere")


def read_run(folder: Path, plan: Plan) -> FinishedRun | None:
    """A run that has been scored after its last stage, None for one that is under way.

    Raises:
        RunFolderError: a file is damaged.
    """
    scores = read_scores(folder / "scores.csv") if (folder / "scores.csv").exists() else []
    last = len(plan.domains) - 1
    if max((score.stage for score in scores), default=-1) < last:
        return None
    sizes = [_size(stage_folder(folder, index, plan.domains[index].name)) for index in (0, last)]
    return FinishedRun(scores, _read_seconds(folder / "seconds.json"), *sizes)


def _read_seconds(file: Path) -> float:
    if not file.exists():
        return math.nan
    try:
        return float(sum(read_json(file).values()))
    except (AttributeError, TypeError):
        raise RunFolderError(file, "is damaged", "delete it, the time is then unknown") from None


def _size(folder: Path) -> float:
    """Bytes of a package's knowledge; its card and its record are left out."""
    if not folder.exists():
        return math.nan
    return float(sum((folder / name).stat().st_size for name in KNOWLEDGE if (folder / name).exists()))
