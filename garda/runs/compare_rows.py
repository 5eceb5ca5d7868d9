"""The finished runs of a comparison, gathered into the rows of its table."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from pathlib import Path

from garda.core import files
from garda.core.config import Config
from garda.core.errors import RunFolderError
from garda.core.pseudonyms import Pseudonyms
from garda.data.sequence import DomainSequence
from garda.evaluation import metrics
from garda.evaluation.measures import FinishedRun, Row
from garda.handover import format, settings, setup
from garda.handover.format import KNOWLEDGE
from garda.handover.settings import Settings
from garda.handover.setup import Plan, PlannedDomain
from garda.methods.registry import METHODS


class Common(Config):
    """What all runs of a comparison have in common: the contents of ``comparison.json``.

    Attributes:
        garda: version that makes the runs.
        name: the sequence's name.
        pseudonyms: as in :class:`garda.handover.setup.Plan`; patients of two runs can be paired only under one key.
        task: see :class:`garda.data.task.Task`.
        domains: source and targets, in order.
        settings: all settings that methods share, training on the source among them, before a variant changes them.
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


def common_part(sequence: DomainSequence, known: Settings, pseudonyms: Pseudonyms) -> Common:
    """What the runs of all methods and seeds over a sequence have in common.

    Args:
        sequence: of any method and seed.
        known: its parsed settings; a plan lacks those that its own method does not read.
        pseudonyms: of the patients.
    """
    plan = settings.make_plan(sequence, known, pseudonyms)
    values = plan.model_dump(mode="json", include=set(_OF_A_PLAN))
    shared = known.model_dump(mode="json", include=set(Settings.model_fields))
    config = hashlib.sha256(sequence.origin.file.read_bytes()).hexdigest()
    return Common.model_validate({**values, "settings": shared, "configs": [config]})


def first_difference(a: Common | Plan, b: Common) -> str | None:
    """The first key in which two differ, settings left aside, which a variant may change."""
    return next((key for key in _OF_A_PLAN if getattr(a, key) != getattr(b, key)), None)


def run_folder(out: Path, method: str, label: str, seed: int) -> Path:
    """The folder of one run, below the comparison's ``out``; no method's name holds a hyphen."""
    return out / "runs" / (f"{method}-{label}" if label else method) / f"seed-{seed}"


def find_rows(out: Path, common: Common) -> list[Row]:
    """Every row with a finished run, oracles last, each part by name.

    Raises:
        RunFolderError: a run belongs to another comparison, or a file is damaged.
    """
    found: dict[tuple[str, str], dict[int, FinishedRun]] = defaultdict(dict)
    for file in sorted(out.glob("runs/*/seed-*/plan.json")):
        plan = setup.read_plan(file.parent)
        _check_belongs(file.parent, plan, common)
        if run := read_run(file.parent, plan):
            label = file.parent.parent.name.removeprefix(plan.method).removeprefix("-")
            found[plan.method, label][plan.seed] = run
    rows = [Row(method, label, dict(sorted(runs.items()))) for (method, label), runs in found.items()]
    return sorted(rows, key=lambda row: (row.bound, row.name))


def _check_belongs(folder: Path, plan: Plan, common: Common) -> None:
    """Refuse a run of something else; a variant may train on the source in another way."""
    difference = first_difference(plan, common) or ("method" if plan.method not in METHODS else None)
    if difference is not None:
        raise RunFolderError(folder, f"is a run of another comparison, {difference} differs", "move it elsewhere")


def read_run(folder: Path, plan: Plan) -> FinishedRun | None:
    """A run that has been scored after its last stage, None for one that is under way.

    Raises:
        RunFolderError: a file is damaged.
    """
    scores = metrics.read_scores(folder / "scores.csv") if (folder / "scores.csv").exists() else []
    last = len(plan.domains) - 1
    if max((score.stage for score in scores), default=-1) < last:
        return None
    sizes = [_size(format.stage_folder(folder, index, plan.domains[index].name)) for index in (0, last)]
    return FinishedRun(scores, _read_seconds(folder / "seconds.json"), *sizes)


def _read_seconds(file: Path) -> float:
    if not file.exists():
        return math.nan
    try:
        return float(sum(files.read_json(file).values()))
    except (AttributeError, TypeError):
        raise RunFolderError(file, "is damaged", "delete it, the time is then unknown") from None


def _size(folder: Path) -> float:
    """Bytes of a package's knowledge; its card and its record are left out."""
    sizes = [(folder / name).stat().st_size for name in KNOWLEDGE if (folder / name).exists()]
    return float(sum(sizes)) if folder.exists() else math.nan
