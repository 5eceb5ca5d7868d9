"""A run: learn the source, adapt to one target after another, score every domain after every stage.

What one stage does, and in which order, stands in :mod:`garda.runs.stage`.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from garda.core.console import Console
from garda.core.errors import ConfigError, Interrupted, RunFolderError
from garda.data import checks
from garda.data.manifest import SPLITS
from garda.data.sequence import Domain, DomainSequence
from garda.evaluation import continual, figures, tables
from garda.evaluation.continual import Metric
from garda.evaluation.metrics import Score, write_scores
from garda.handover import ledger, signing, trust, verify
from garda.handover.settings import make_plan
from garda.handover.setup import Plan
from garda.methods import registry
from garda.methods.base import Method
from garda.methods.oracles import Oracle
from garda.models.reading import Candidate
from garda.runs import choices, context, plan, stage
from garda.runs.choices import CANDIDATES
from garda.runs.context import Run
from garda.runs.stage import Before, Known
from garda.runs.tracking import RunDescription
from garda.safety.limits import SourceBaseline
from garda.training import distributed, sharding

T = TypeVar("T")


def run_sequence(run: Run) -> list[Score]:
    """Take a segmenter through the sequence; the same call again goes on where the last one ended.

    Every rank of a run on several devices calls this. At the end every stage's package is looked at once more.

    Returns:
        The scores of every labelled test scan after every stage; at rank zero alone.

    Raises:
        GardaError: nothing is trained before every file has been read and found good; see :mod:`garda.core.errors`.
    """
    planned = make_plan(run.sequence, run.settings, run.pseudonyms)
    method = registry.build_method(run.sequence.method, run.settings, run.sequence.task)
    return carry_out(run, planned, method, lambda: _follow(run, planned, method)) or []


def carry_out(run: Run, planned: Plan, method: Method, follow: Callable[[], T]) -> T | None:
    """Look whether all can be done, then claim the run folder and let every rank follow; the tracker is told.

    Args:
        run: a sequence, or one hop of it.
        planned: what it is.
        method: how it learns.
        follow: what every rank does.

    Returns:
        what ``follow`` gives; None at another rank where rank zero has ended early, and has told why.
    """
    rank_zero, to_learn = distributed.is_rank_zero(), run.to_learn()
    if rank_zero:
        plan.check_folder(run.out, planned)
        _check_signed(run)
        if to_learn:
            method.check()
            sharding.check_batches(run.settings, planned.settings, distributed.count())
        to_read = list(run.sequence.domains) if to_learn and isinstance(method, Oracle) else to_learn
        cases = checks.needed_cases(run.sequence, to_read, method.reads_target_labels)
        checks.check(run.sequence, run.data, cases, run.console, method.reads_target_labels)
    claimed = plan.claim(run.out, planned) if rank_zero else nullcontext()
    with claimed, distributed.running(run.stopping, bool(to_learn)):
        if rank_zero and to_learn:
            context.note_machine(run, method.compute.describe())
        run.tracker.start(describe(run.sequence, planned))
        try:
            found = follow()
        except BaseException as error:
            run.tracker.finish("stopped" if isinstance(error, Interrupted) else "failed")
            raise
        run.tracker.finish("finished")
        return found
    return None


def _check_signed(run: Run) -> None:
    """Refuse what nobody would take: a line without its site's trusted key, or a chain that stays half signed."""
    mine = None if run.key is None else signing.public_digits(run.key)
    keys = {own.site: own.key for own in trust.read()}
    for domain in run.to_learn():
        if keys.get(domain.name, mine) != mine:
            what = f"another key is trusted for {domain.name}" if mine else f"a key is trusted for {domain.name}"
            raise ConfigError("--sign", f"{what}, without which no command takes its line", "give that site's key")
    if mine is None:
        return
    for domain in run.sequence.domains:
        package, line = run.kept(domain), domain.index + 1
        if not package.exists():
            continue
        if (line, mine) not in [(own.line, own.key) for own in signing.read_signatures(package)]:
            remedy = "leave out --sign, or give another --out"
            raise RunFolderError(package, "was sealed without this key's signature, and is not signed later", remedy)


def _follow(run: Run, planned: Plan, method: Method) -> list[Score]:
    scores = context.read_run_scores(run.out, [domain.name for domain in run.sequence.domains])
    before: Before | None = None
    for domain in run.sequence.domains:
        run.stopping.check(context.stage_name(domain))
        score = partial(_score, run, method, scores, before)
        known = stage.run_stage(run, method, domain, before, planned.setup, score)
        before = Before(run.kept(domain), known, partial(_read_baseline, run) if run.gated else None)
    for package in map(run.kept, run.sequence.domains) if distributed.is_rank_zero() else ():
        verify.verify(package)
    if run.judging and not (run.out / CANDIDATES).exists():
        run.console.line("no choice is judged: no candidates were kept, or no target has a labelled test scan")
    return scores


def _read_baseline(run: Run) -> SourceBaseline:
    """What the gate measured of the source, as it stands in the ledger's first line."""
    package = run.kept(run.sequence.source)
    return cast(SourceBaseline, ledger.parse_lines(package, ledger.read_lines(package))[0].reference)


def _score(
    run: Run, method: Method, scores: list[Score], before: Before | None, domain: Domain, known: Known
) -> list[Score]:
    """Bring ``scores`` up to the stage, judge its choice, publish; gives the stage's own.

    A domain that is read as before is not segmented again.
    """
    if unscored := find_unscored(run, domain, scores):
        names = {other.name for other in unscored}
        others = [row for row in scores if row.stage != domain.index or row.domain not in names]
        same = {name for name in names if before and method.reads_equally(before.knowledge(), known(), name)}
        earlier = [row for row in scores if row.stage == domain.index - 1 and row.domain in same]
        copied = [replace(row, stage=domain.index) for row in earlier]
        changed = [other for other in unscored if other.name not in same]
        rows = stage.score_domains(run, method, domain, known(), changed) if changed else []
        places = {other.name: place for place, other in enumerate(run.sequence.domains)}
        rows = [*others, *copied, *rows]  # not in the order of the manifest, which would say who is who
        scores[:] = sorted(rows, key=lambda row: (row.stage, places[row.domain], row.patient, row.case))
    stage.hold_falls(run, domain, scores)
    if run.judging:
        _judge(run, method, domain, known)
    publish(run, domain, scores)
    return [row for row in scores if row.stage == domain.index]


def find_unscored(run: Run, domain: Domain, scores: Sequence[Score]) -> list[Domain]:
    """The domains of which a labelled test scan has no score after a stage."""
    count = Counter(row.domain for row in scores if row.stage == domain.index)
    foreground = len(run.sequence.task.classes) - 1
    scored = [other for other in run.sequence.domains if checks.labelled_cases(other)]
    return [other for other in scored if count[other.name] != len(checks.labelled_cases(other)) * foreground]


def _judge(run: Run, method: Method, domain: Domain, known: Known) -> None:
    folder, table = run.kept(domain).parent, run.out / CANDIDATES
    judged = domain.index in {line.stage for line in choices.read_candidates(table)}
    if judged or not (folder / "candidates.json").exists() or not checks.labelled_cases(domain):
        return

    def dice(candidate: Candidate) -> float:
        tried = replace(known(), domain_state={**known().domain_state, domain.name: candidate.own})
        scores = stage.score_domains(run, method, domain, tried, [domain])
        return float(np.mean([*continual.patient_scores(scores, "dice").values()]))

    choices.judge(table, domain.index, domain.name, choices.load_candidates(folder), dice)


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
    figures.write_png(run.out / "matrix.png", figures.draw_matrix(dice, note))
    run.tracker.stage_ended(context.stage_name(domain), domain.index, stage_metrics(so_far, run.sequence))
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
        (domain.name, planned.manifest, {split: len(domain.split(split)) for split in SPLITS})
        for domain, planned in zip(sequence.domains, plan.domains, strict=True)
        if domain.cases
    ]
    return RunDescription(
        name=sequence.name,
        method=sequence.method,
        seed=sequence.seed,
        parameters=plan.settings,
        manifests=manifests,
        stages=[context.stage_name(domain) for domain in sequence.domains],
    )


def tell_scores(sequence: DomainSequence, scores: list[Score], out: Path, console: Console) -> None:
    """The matrix and its numbers, and where every score is."""
    dice = continual.matrix(scores, [domain.name for domain in sequence.domains], "dice")
    console.show(tables.matrix_table(dice, sequence.task.same_patient_in_splits))
    console.line(", ".join(f"{name} {value:.3f}" for name, value in continual.summary(dice).items()))
    lost = continual.forgetting(dice)
    if lost.worst > 0:
        console.line(f"most forgotten: {lost.worst_domain}, {lost.worst:.3f}")
    console.line(f"every score: {out / 'scores.csv'}")
