"""What a comparison is asked for, and whether all of it can be done, before anything is learnt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from garda.core import files
from garda.core.errors import ConfigError, RunFolderError, raise_all
from garda.core.pseudonyms import Pseudonyms
from garda.data import sequence
from garda.data.sequence import DomainSequence
from garda.evaluation import measures
from garda.handover import settings, setup
from garda.handover.settings import Settings
from garda.handover.setup import Plan
from garda.methods import registry
from garda.methods.registry import METHODS
from garda.runs import compare_rows, plan
from garda.runs.compare_rows import Common
from garda.runs.plan import TORN

_UNDO = "undo the change, or give a new --out folder"


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
        return self.folder.exists() and compare_rows.read_run(self.folder, self.plan) is not None

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
    common = _join(request.out, compare_rows.common_part(replace(plain, method=methods[0]), known, pseudonyms))
    changed = settings.parse_settings(methods[0], variant.settings, variant.origin)
    planned = []
    for seed in dict.fromkeys(seeds):
        for method in dict.fromkeys(methods):
            asked = replace(variant, method=method, seed=seed)
            folder = compare_rows.run_folder(request.out, method, request.label, seed)
            planned.append(Planned(asked, settings.make_plan(asked, changed, pseudonyms), folder, request.label))
    for run in planned:
        _check_run(run, changed)
        if run.label and run.plan.settings == settings.make_plan(run.sequence, known, pseudonyms).settings:
            # it would be a second row of the same numbers
            what = f"changes nothing that {run.plan.method} reads, or sets what is set already"
            raise ConfigError("--set", what, "change another key, or leave the method out of --methods")
    rows = {measures.row_name(run.plan.method, run.label) for run in planned}
    rows |= {row.name for row in compare_rows.find_rows(request.out, common)}
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
    try:
        known = Common.model_validate(files.read_json(file))
    except ValueError:
        raise RunFolderError(file, "is damaged", "give a new --out folder, or restore the file") from None
    difference = compare_rows.first_difference(known, common)
    for key in sorted({*known.settings, *common.settings}):
        if known.settings.get(key) != common.settings.get(key):
            difference = difference or f"settings.{key}"
    if difference is not None:
        what = f"the folder holds another comparison, {difference} differs"
        raise RunFolderError(file, what, "undo the change, or give a new --out folder")
    return common.model_copy(update={"configs": tuple(sorted({*known.configs, *common.configs}))})


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
