"""The order of things: learn the source, adapt to one target after another, score every domain after every stage.

This is the only file that knows the order; what learner and evaluator do in a stage is in :mod:`garda.runs.stage` and
:mod:`garda.runs.stage`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.core.errors import Interrupted, RunFolderError
from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.data import checks
from garda.data.manifest import SPLITS
from garda.data.sequence import Domain, DomainSequence
from garda.evaluation import continual, figures
from garda.evaluation.continual import Metric
from garda.evaluation.metrics import Score, read_scores, write_scores
from garda.handover import format, ledger, signing
from garda.handover.settings import make_plan, parse_settings
from garda.handover.setup import Plan
from garda.methods import registry
from garda.methods.base import Method, Oracle
from garda.methods.knowledge import Knowledge
from garda.models.choice import Candidate
from garda.runs import audit, choices, stage
from garda.runs.choices import CANDIDATES
from garda.runs.plan import check_folder, claim
from garda.runs.stage import Run
from garda.runs.tracking import InMemory, RunDescription
from garda.safety.limits import SourceBaseline
from garda.training import distributed, sharding


def run_sequence(run: Run) -> list[Score]:
    """Take a segmenter through the sequence; the same call again goes on where the last one ended.

    Returns:
        The scores of every labelled test scan after every stage.

    Raises:
        GardaError: nothing is trained before every file has been read and found good; see :mod:`garda.core.errors`.
    """
    sequence = run.sequence
    settings = run.settings
    plan = make_plan(sequence, settings, run.pseudonyms)
    check_folder(run.out, plan)
    _check_signed(run)
    method = registry.build_method(sequence.method, settings, sequence.task)
    if run.to_learn():
        method.check()
        sharding.check_batches(settings, plan.settings, distributed.count())
    labels = method.reads_target_labels
    checks.check(sequence, run.data, checks.needed_cases(sequence, _to_read(run, method), labels), run.console, labels)
    with claim(run.out, plan), distributed.leading(run.stopping, bool(run.to_learn())):
        run.tracker.start(describe(sequence, plan))
        try:
            scores = _follow(run, plan, method)
        except BaseException as error:
            run.tracker.finish("stopped" if isinstance(error, Interrupted) else "failed")
            raise
        run.tracker.finish("finished")
    return scores


def enlist(sequence: DomainSequence, devices: int, nodes: int) -> bool:
    """Whether this process leads the run of a sequence; see :func:`garda.training.distributed.enlist`."""
    settings = parse_settings(sequence.method, sequence.settings, sequence.origin)
    return distributed.enlist(devices, nodes, settings.compute.accelerator)


def follow_sequence(sequence: DomainSequence, data: Path, out: Path, stopping: Stopping) -> None:
    """The part of a process that does not lead: wait for the leader's checks, learn along until dismissed, say nothing.

    Args:
        sequence: as the leader has it.
        data: the folder that manifest paths are relative to.
        out: the leader's run folder, where finished stages are read.
        stopping: asked within the stages.
    """
    settings = parse_settings(sequence.method, sequence.settings, sequence.origin)
    method = registry.build_method(sequence.method, settings, sequence.task)
    run = Run(sequence, data, out, InMemory(), Console(RichConsole(quiet=True)), stopping, Pseudonyms(b""))
    with distributed.following(stopping):
        stage.learn_along(run, method, lambda domain: method.load(run.kept(sequence.domains[domain.index - 1])))


def _check_signed(run: Run) -> None:
    """Refuse a key that has not signed what is sealed already: the chain would stay half signed, and nobody be told."""
    mine = None if run.key is None else signing.public_digits(run.key)
    for domain in run.sequence.domains if mine else ():
        package, line = run.kept(domain), domain.index + 1
        if format.is_package(package) and (line, mine) not in [
            (own.line, own.key) for own in signing.read_signatures(package)
        ]:
            remedy = "leave out --sign, or give another --out"
            raise RunFolderError(package, "was sealed without this key's signature, and is not signed later", remedy)


def _follow(run: Run, plan: Plan, method: Method) -> list[Score]:
    before: Knowledge | None = None  # of the stage before; None where it has not been needed yet
    previous: Path | None = None  # its package
    scores = read_scores(run.scores_file) if run.scores_file.exists() else []
    if any(row.stage >= len(run.sequence.domains) for row in scores):
        raise RunFolderError(run.scores_file, "holds stages of another run", "delete it, it is computed again")
    for domain in run.sequence.domains:
        run.stopping.check(stage.stage_name(domain))
        knowledge: Knowledge | None = None
        if not run.kept(domain).exists():
            before = before or (method.load(previous) if previous else None)
            knowledge = stage.learn(run, method, domain, before, _source(run) if domain.index > 0 else None)
        if run.audited and not format.is_package(run.kept(domain)):
            knowledge = knowledge or method.load(run.kept(domain))
            audit.audit_stage(run, method, domain, knowledge)
        stage.forget_training(run, domain)
        unscored = find_unscored(run, domain, scores)
        if unscored:
            before = before or (method.load(previous) if previous else None)
            knowledge = knowledge or method.load(run.kept(domain))
            scores = _add_scores(run, method, domain, (before, knowledge), unscored, scores)
            stage.warn_regression(run, domain, scores)
        if run.judging:
            _judge(run, method, domain, knowledge)
        publish(run, domain, scores)
        stage.seal_stage(run, plan.setup, domain, previous, [row for row in scores if row.stage == domain.index])
        before, previous = knowledge, run.kept(domain)
    if run.judging and not (run.out / CANDIDATES).exists():
        run.console.line("no choice is judged: no candidates were kept, or no target has a labelled test scan")
    return scores


def _source(run: Run) -> SourceBaseline | None:
    """What the gate knows of the source; None where no gate judges."""
    if not run.gated:
        return None
    package = run.kept(run.sequence.source)
    return ledger.parse_lines(package, ledger.read_lines(package))[0].reference


def _add_scores(
    run: Run,
    method: Method,
    domain: Domain,
    known: tuple[Knowledge | None, Knowledge],
    unscored: Sequence[Domain],
    scores: Sequence[Score],
) -> list[Score]:
    """The scores with those of the unscored domains after a stage; what reads as before is not segmented again."""
    before, after = known
    names = {other.name for other in unscored}
    others = [row for row in scores if row.stage != domain.index or row.domain not in names]
    same = [other.name for other in unscored if before and method.reads_equally(before, after, other.name)]
    earlier = [row for row in scores if row.stage == domain.index - 1 and row.domain in same]
    changed = [other for other in unscored if other.name not in same]
    rows = stage.score(run, method, domain, after, changed) if changed else []
    copied = [replace(row, stage=domain.index) for row in earlier]
    return sorted([*others, *copied, *rows], key=lambda row: row.stage)


def find_unscored(run: Run, domain: Domain, scores: Sequence[Score]) -> list[Domain]:
    """The domains of which a labelled test scan has no score after a stage."""
    count = Counter(row.domain for row in scores if row.stage == domain.index)
    foreground = len(run.sequence.task.classes) - 1
    scored = [other for other in run.sequence.domains if checks.labelled_cases(other)]
    return [other for other in scored if count[other.name] != len(checks.labelled_cases(other)) * foreground]


def _judge(run: Run, method: Method, domain: Domain, knowledge: Knowledge | None) -> None:
    folder, table = run.kept(domain).parent, run.out / CANDIDATES
    judged = domain.index in {line.stage for line in choices.read_candidates(table)}
    if judged or not (folder / "candidates.json").exists() or not checks.labelled_cases(domain):
        return
    known = knowledge or method.load(run.kept(domain))

    def dice(candidate: Candidate) -> float:
        tried = replace(known, domain_state={**known.domain_state, domain.name: candidate.own})
        return float(
            np.mean([*continual.patient_scores(stage.score(run, method, domain, tried, [domain]), "dice").values()])
        )

    choices.judge(table, domain.index, domain.name, choices.load_candidates(folder), dice)


def _to_read(run: Run, method: Method) -> list[Domain]:
    """The domains whose training scans the stages to come read."""
    to_learn = run.to_learn()
    return list(run.sequence.domains) if to_learn and isinstance(method, Oracle) else to_learn


def publish(run: Run, domain: Domain, scores: list[Score]) -> None:
    """Write scores and matrix of the stages so far and hand them to the tracker; harmless to repeat."""
    so_far = [row for row in scores if row.stage <= domain.index]
    if not so_far:
        return
    write_scores(run.scores_file, scores)
    names = [other.name for other in run.sequence.domains]
    note = run.sequence.task.same_patient_in_splits
    dice = continual.matrix(scores, names, "dice")
    continual.write_matrix(run.out / "matrix.csv", dice, note)
    continual.write_matrix(run.out / "matrix_hd95.csv", continual.matrix(scores, names, "hd95"), note)
    figures.draw_matrix(run.out / "matrix.png", dice, note)
    run.tracker.stage_ended(stage.stage_name(domain), domain.index, stage_metrics(so_far, run.sequence))
    for name in ("plan.json", "scores.csv", "matrix.csv", "matrix_hd95.csv", "matrix.png"):
        run.tracker.artifact(run.out / name)


def stage_metrics(scores: Sequence[Score], sequence: DomainSequence) -> dict[str, float]:
    """What is known after the last stage in ``scores``, by metric name.

    ``dice/<domain>/<class>`` and ``hd95/<domain>/<class>``, means over patients, and the continual numbers of the
    Dice matrix (see :func:`garda.evaluation.continual.summary`).
    """
    names = [domain.name for domain in sequence.domains]
    metrics = continual.summary(continual.matrix(scores, names, "dice"))
    metrics_of_scans: tuple[Metric, ...] = ("dice", "hd95")
    for metric, class_name in itertools.product(metrics_of_scans, sequence.task.classes[1:]):
        last = continual.matrix(scores, names, metric, class_name).values[-1]
        metrics |= {f"{metric}/{n}/{class_name}": float(v) for n, v in zip(names, last, strict=True) if v == v}
    return metrics


def describe(sequence: DomainSequence, plan: Plan) -> RunDescription:
    """The run as the tracker shows it; a domain that another site has learnt stands among the stages alone."""
    manifests = [
        (domain.name, sequence.digests[domain.name], {split: len(domain.split(split)) for split in SPLITS})
        for domain in sequence.domains
        if domain.cases
    ]
    return RunDescription(
        name=sequence.name,
        method=sequence.method,
        seed=sequence.seed,
        parameters=plan.settings,
        manifests=manifests,
        stages=[stage.stage_name(domain) for domain in sequence.domains],
    )
