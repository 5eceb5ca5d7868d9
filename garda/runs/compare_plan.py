"""What a comparison is asked for, all of it checked before anything is learnt, and the rows that are finished."""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from garda.core import files
from garda.core.config import Config
from garda.core.errors import ConfigError, RunFolderError, raise_all
from garda.core.files import TORN
from garda.core.pseudonyms import Pseudonyms
from garda.data import sequence
from garda.data.sequence import DomainSequence
from garda.evaluation import measures
from garda.evaluation.measures import FinishedRun, Row
from garda.handover import format, settings, setup
from garda.handover.format import KNOWLEDGE
from garda.handover.settings import Settings
from garda.handover.setup import Plan, PlannedDomain
from garda.methods import registry
from garda.methods.registry import METHODS
from garda.runs import context, plan


@dataclass(frozen=True)
class Request:
    """What a comparison is asked for.

    Attributes:
        pipeline: a YAML of ``pipelines/``.
        data: the folder that manifest paths are relative to.
        out: the comparison's folder.
        methods: names; None for all there are.
        seeds: None for the pipeline's one.
        label: names a variant of the methods; empty for none.
        changes: settings that make the variant.
        config: takes the place of the pipeline's configuration.
        against: name of the row that the others are compared with; None for the best other one.
        judging: keep the candidates of each target's stage and write what their hidden Dice was.
    """

    pipeline: Path
    data: Path
    out: Path
    methods: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    label: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None
    against: str | None = None
    judging: bool = False


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


_OF_A_PLAN = ("garda", "name", "pseudonyms", "task", "domains")  # the others a variant may change


@dataclass(frozen=True)
class Planned:
    """One run that is asked for."""

    sequence: DomainSequence
    plan: Plan
    folder: Path
    label: str

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.folder.exists() and read_run(self.folder, self.plan) is not None

    @property
    def name(self) -> str:
        """Such as ``randomised seed 0``."""
        return f"{measures.row_name(self.plan.method, self.label)} seed {self.plan.seed}"


def plan_runs(request: Request, pseudonyms: Pseudonyms) -> tuple[Common, list[Planned]]:
    """Every run that is asked for, seed by seed, and what they have in common; nothing is written.

    Where no methods are named, an oracle whose target labels are not there is left out.

    Raises:
        GardaError: a name, a setting, a folder or a manifest does not fit.
    """
    _check_words(request)
    plain = sequence.read_sequence(request.pipeline, config=request.config)
    variant = plain
    if request.changes:
        variant = sequence.read_sequence(request.pipeline, config=request.config, changes=dict(request.changes))
    methods = _possible(variant) if request.methods is None else request.methods
    seeds = [plain.seed] if request.seeds is None else request.seeds
    known = settings.parse_settings(methods[0], plain.settings, plain.origin)  # of all methods, whichever is named
    common = _join(request.out, _common_part(replace(plain, method=methods[0]), known, pseudonyms))
    changed = settings.parse_settings(methods[0], variant.settings, variant.origin)
    planned = []
    for seed in dict.fromkeys(seeds):
        for method in dict.fromkeys(methods):
            asked = replace(variant, method=method, seed=seed)
            folder = run_folder(request.out, method, request.label, seed)
            planned.append(Planned(asked, settings.make_plan(asked, changed, pseudonyms), folder, request.label))
    for run in planned:
        _check_run(run, changed)
        if run.label and run.plan.settings == settings.make_plan(run.sequence, known, pseudonyms).settings:
            # it would be a second row of the same numbers
            what = f"changes nothing that {run.plan.method} reads, or sets what is set already"
            raise ConfigError("--set", what, "change another key, or leave the method out of --methods")
    rows = {measures.row_name(run.plan.method, run.label) for run in planned}
    rows |= {row.name for row in find_rows(request.out, common)}
    if request.against is not None and request.against not in rows:
        raise ConfigError("--against", f"no row {request.against!r}", f"use one of {', '.join(sorted(rows))}")
    return common, planned


def parse_methods(text: str | None) -> list[str] | None:
    """``"a,b"`` as a list; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",")]


def parse_seeds(text: str | None) -> list[int] | None:
    """``"0,1,2"`` as a list, each seed once; None stays None.

    Raises:
        ConfigError: something else than whole numbers from 0 to 2^31 - 1, parted by commas.
    """
    if text is None:
        return None
    seeds = [int(part) for part in text.split(",") if re.fullmatch(r"\s*[0-9]{1,10}\s*", part)]
    if len(seeds) != text.count(",") + 1 or max(seeds) >= 2**31:
        raise ConfigError("--seeds", f"expected whole numbers from 0, got {text!r}", "write for example --seeds 0,1,2")
    return list(dict.fromkeys(seeds))


def _check_words(request: Request) -> None:
    """What can be judged without a file."""
    for name in request.methods or ():
        settings.check_method(name, "--methods")
    if not re.fullmatch(r"[A-Za-z0-9_.-]*", request.label):
        raise ConfigError("--label", f"expected letters, digits and _.-, got {request.label!r}", "rename the variant")
    if request.changes and not request.label:
        raise ConfigError("--set", "makes a variant that has no name", "give one with --label")
    if request.label and not request.changes:
        raise ConfigError("--label", "names a variant that changes nothing", "give the change with --set KEY=VALUE")


def _common_part(asked: DomainSequence, known: Settings, pseudonyms: Pseudonyms) -> Common:
    values = settings.make_plan(asked, known, pseudonyms).model_dump(mode="json", include={*_OF_A_PLAN})
    shared = known.model_dump(mode="json", include={*Settings.model_fields})  # a plan has what its method reads
    config = hashlib.sha256(asked.origin.file.read_bytes()).hexdigest()
    return Common.model_validate({**values, "settings": shared, "configs": [config]})


def _first_difference(a: Common | Plan, b: Common) -> str | None:
    return next((key for key in _OF_A_PLAN if getattr(a, key) != getattr(b, key)), None)


def _join(out: Path, common: Common) -> Common:
    """The comparison that is begun in a new ``out``, or goes on in one that holds the same."""
    file = out / "comparison.json"
    try:
        foreign = out.exists() and (not out.is_dir() or any(not path.match(TORN) for path in out.iterdir()))
        begun = file.exists()
    except OSError as error:
        raise RunFolderError(out, f"cannot be read ({files.reason(error)})", "give another --out folder") from None
    if not begun and foreign:
        raise RunFolderError(out, "holds something that is not a comparison of garda", "give a new --out folder")
    if not begun:
        return common
    known = read_common(out)
    difference = _first_difference(known, common)
    for key in sorted({*known.settings, *common.settings}):
        if known.settings.get(key) != common.settings.get(key):
            difference = difference or f"settings.{key}"
    if difference is not None:
        what = f"the folder holds another comparison, {difference} differs"
        raise RunFolderError(file, what, "undo the change, or give a new --out folder")
    return common.model_copy(update={"configs": tuple(sorted({*known.configs, *common.configs}))})


def read_common(out: Path) -> Common:
    """What the runs of a comparison have in common.

    Raises:
        RunFolderError: ``comparison.json`` is damaged.
    """
    file = out / "comparison.json"
    try:
        return Common.model_validate(files.read_json(file))
    except ValueError:
        raise RunFolderError(file, "is damaged", "give a new --out folder, or restore the file") from None


def _possible(asked: DomainSequence) -> list[str]:
    """Every method but those that need target labels which the manifests do not have."""
    labelled = not sequence.find_gaps(asked, True)
    return [name for name, method in METHODS.items() if labelled or not method.reads_target_labels]


def _check_run(run: Planned, changed: Settings) -> None:
    """Refuse what could only fail when the run's turn has come."""
    plan.check_folder(run.folder, run.plan)
    for file in sorted(run.folder.parent.glob("seed-*/plan.json")):
        if setup.read_plan(file.parent).settings != run.plan.settings:
            raise RunFolderError(file, f"was run with other settings than {run.name}", "give a --label, or a new --out")
    if not run.finished:
        method = registry.build_method(run.plan.method, changed, run.sequence.task)
        method.check()
        raise_all(sequence.find_gaps(run.sequence, method.reads_target_labels))


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
        folder, made = file.parent, setup.read_plan(file.parent)
        difference = _first_difference(made, common) or ("method" if made.method not in METHODS else None)
        if difference is not None:
            raise RunFolderError(folder, f"is a run of another comparison, {difference} differs", "move it elsewhere")
        if run := read_run(folder, made):
            label = folder.parent.name.removeprefix(made.method).removeprefix("-")
            found[made.method, label][made.seed] = run
    rows = [Row(method, label, dict(sorted(runs.items()))) for (method, label), runs in found.items()]
    return sorted(rows, key=lambda row: (row.bound, row.name))


def read_run(folder: Path, made: Plan) -> FinishedRun | None:
    """A run that has been scored after its last stage, None for one that is under way.

    Raises:
        RunFolderError: a file is damaged.
    """
    scores = context.read_run_scores(folder, [domain.name for domain in made.domains])
    last = len(made.domains) - 1
    if max((score.stage for score in scores), default=-1) < last:
        return None
    sizes = [_size(format.stage_folder(folder, index, made.domains[index].name)) for index in (0, last)]
    return FinishedRun(scores, _read_seconds(folder / "seconds.json"), *sizes)


def _read_seconds(file: Path) -> float:
    try:
        return float(sum(files.read_json(file).values())) if file.exists() else math.nan
    except (AttributeError, TypeError):
        raise RunFolderError(file, "is damaged", "delete it, the time is then unknown") from None


def _size(folder: Path) -> float:
    """Bytes of a package's knowledge; its card and its record are left out."""
    sizes = [(folder / name).stat().st_size for name in KNOWLEDGE if (folder / name).exists()]
    return float(sum(sizes)) if folder.exists() else math.nan
