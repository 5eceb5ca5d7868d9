"""One stage of a sequence: learn, judge, save, audit, score, seal. The order stands here and nowhere else.

A stage has two roles. The learner sees a domain's training scans, never a test path or a target's label; the evaluator
sees labelled test scans and learns nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

from garda import __version__
from garda.core import files
from garda.core.errors import TrainingError
from garda.data import components, holdout
from garda.data.checks import read_unchanged, without_label
from garda.data.dataset import Slices
from garda.data.manifest import Case
from garda.data.sequence import Domain
from garda.data.volume import Volume
from garda.evaluation import evaluator, results
from garda.evaluation.evaluator import TestScans
from garda.evaluation.metrics import Score
from garda.handover import format, ledger, write
from garda.handover.format import CARD, OPEN
from garda.handover.ledger import StageRecord
from garda.handover.setup import Setup
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.methods.oracles import Oracle
from garda.runs import audit, choices, context
from garda.runs.context import Run
from garda.safety import gate, limits
from garda.safety.limits import Check, GateDecision, SourceBaseline
from garda.training import distributed
from garda.training.cache import Stage

Known = Callable[[], Knowledge]  # read, or learnt, when it is first asked for


@dataclass(frozen=True)
class Before:
    """What a target's stage begins with.

    Attributes:
        package: of the stage before.
        knowledge: what is in it.
        source: what the gate knows of the source; None where no gate judges.
    """

    package: Path
    knowledge: Known
    source: Callable[[], SourceBaseline] | None


def run_stage(
    run: Run,
    method: Method,
    domain: Domain,
    before: Before | None,
    setup: Setup,
    score: Callable[[Domain, Known], Sequence[Score]],
) -> Known:
    """Learn, judge, save, audit, score, seal: as far as that has not been done.

    Every rank of a run learns; rank zero alone does the rest.

    Args:
        run: where, and who listens.
        method: how.
        domain: what is learnt.
        before: what a target's stage begins with; None for the source.
        setup: what the package says of the sequence.
        score: scores the stage and hands the scores on; gives those that go into the package.

    Returns:
        what is known after the stage.
    """
    missing = distributed.on_rank_zero(lambda: not run.found(domain).exists())
    learnt = learn(run, method, domain, before) if missing else None
    known = cache(lambda: learnt or method.load(run.found(domain)))
    if distributed.is_rank_zero():
        new = not run.kept(domain).exists()
        if run.audited:
            _audit(run, method, domain, known())
        files.remove_folder(run.training(domain))  # what cannot be removed is told: it may hold a discriminator
        scores = score(domain, known)
        write.write_package(
            run.kept(domain),
            run.learnt(domain),
            before.package if before else None,
            setup,
            results.summarise(scores),
            context.seconds_of(run, domain),
            run.key,
        )
        if new:
            _tell_sealed(run, domain)
    return known


def _tell_sealed(run: Run, domain: Domain) -> None:
    """Let the tracker show what became of a stage."""
    package = run.kept(domain)
    last = ledger.parse_lines(package, ledger.read_lines(package))[-1]
    facts = {"decision": last.decision + last.overruled, "digest": format.package_digest(package)}
    run.tracker.sealed(context.stage_name(domain), domain.name, facts, (package / CARD).read_text(encoding="utf-8"))


def learn(run: Run, method: Method, domain: Domain, before: Before | None) -> Knowledge:
    """Read a domain's training scans, learn, let the gate judge, save.

    Returns:
        what is kept: what was learnt, or what was known before where the gate has refused it.
    """
    with context.training_folder(run, domain) as folder:
        offer = partial(choices.keep_candidates, run.kept(domain).parent) if run.judging else _no_choice
        stage = Stage(partial(context.open_phase, run, domain, folder), context.open_cache(run), offer)
        if before is None:
            slices, held_out = read_source(run, domain, folder)
            knowledge = method.learn_source(domain.name, slices, held_out, stage)
            knowledge = replace(knowledge, largest=_choose_postprocessing(run, method, domain, knowledge, stage))
            measuring = (method, knowledge, slices, run.settings.gate, run.sequence.seed)
            measured = distributed.on_rank_zero(lambda: gate.measure_baseline(*measuring))
            found: dict[str, Any] = {"decision": "source", "reference": measured}
        elif before.source is None or isinstance(method, Oracle):
            slices = read_slices(run, method, domain, folder)
            knowledge, found = _adapt(run, method, domain, before, slices, stage, folder), {"decision": "ungated"}
        else:
            slices = read_slices(run, method, domain, folder)
            knowledge, found = _adapt_gated(run, method, domain, before.knowledge(), before.source, slices, stage)
        if distributed.is_rank_zero():
            record = StageRecord(
                stage=domain.index,
                domain=domain.name,
                month=f"{date.today():%Y-%m}",
                garda=__version__,
                manifest=run.pseudonyms.digest("manifest", run.sequence.digests[domain.name]),
                patients=len({case.patient for case in domain.split("train")}),
                scans=len(domain.split("train")),
                slices=len(slices),
                deleted=context.deleted_records(folder),
                found=context.notes_of(run, domain),
                **found,
            )
            knowledge.save(run.learnt(domain), {OPEN: record.model_dump(mode="json")})
    return knowledge


def _choose_postprocessing(
    run: Run, method: Method, domain: Domain, knowledge: Knowledge, stage: Stage
) -> components.Groups:
    """Of which classes the largest piece alone is kept from now on; the ledger says their names."""
    chosen = distributed.on_rank_zero(lambda: evaluator.choose_postprocessing(method, knowledge, domain, run.data))
    if chosen:
        names = ["+".join(run.sequence.task.classes[each] for each in group) for group in chosen]
        stage("postprocessing").note({"largest piece of": ", ".join(names)})
    return chosen


def _adapt(
    run: Run, method: Method, domain: Domain, before: Before, slices: Slices, stage: Stage, folder: Path
) -> Knowledge:
    if not isinstance(method, Oracle):
        return method.adapt(before.knowledge(), domain.name, slices, stage)
    earlier = run.sequence.domains[: domain.index]
    met = {other.name: read_slices(run, method, other, folder) for other in earlier}
    return method.adapt_jointly(before.knowledge(), {**met, domain.name: slices}, stage)


def _adapt_gated(
    run: Run,
    method: Method,
    domain: Domain,
    known: Knowledge,
    source: Callable[[], SourceBaseline],
    slices: Slices,
    stage: Stage,
) -> tuple[Knowledge, dict[str, Any]]:
    """Learn a target between two inspections; where it is refused nothing is learnt, or what was learnt is dropped."""

    def inspect(after: Knowledge | None) -> list[Check]:
        measured, settings, seed = source(), run.settings.gate, run.sequence.seed
        if after is None:
            return gate.inspect_incoming(method, known, domain.name, slices, measured, settings, seed)
        return gate.inspect_learnt(method, known, after, slices, measured, settings, seed)

    checks = distributed.on_rank_zero(lambda: inspect(None))
    after = known
    if run.forced or limits.decide(checks).decision != "refuse":
        try:
            after = method.adapt(known, domain.name, slices, stage)
            checks += distributed.on_rank_zero(lambda: inspect(after))
        except TrainingError as error:  # the target's failure, not the sequence's
            after, checks = known, [*checks, limits.failed(domain.name, f"{error.where}: {error.what}")]
    decision = limits.decide(checks)
    kept = known if decision.decision == "refuse" and not run.forced else after
    return kept, _describe_decision(run, domain, decision)


def _describe_decision(run: Run, domain: Domain, found: GateDecision) -> dict[str, Any]:
    """A decision as it stands in the ledger; what is not promoted is told."""
    forced = run.forced and found.decision == "refuse"
    for reason in found.reasons:
        context.tell(run, domain, reason)
    if found.decision != "promote":
        what = {"hold": "held, look at it before it is used", "refuse": "refused, the site is left out"}
        context.tell(run, domain, "refused, overruled" if forced else what[found.decision])
    checks = [check.model_dump(mode="json") for check in found.checks]
    return {"decision": found.decision, "reasons": found.reasons, "checks": checks, "forced": forced}


def _audit(run: Run, method: Method, domain: Domain, knowledge: Knowledge) -> None:
    """Look for patients in what was learnt; a finding holds it. A second call does nothing."""
    file, drawn = run.learnt(domain) / OPEN, knowledge.generator
    if run.kept(domain).exists() or not file.exists() or drawn is None or domain.name not in drawn.domains:
        return
    record = StageRecord.model_validate(files.read_json(file))
    if record.audit is not None:
        return
    found = audit.audit_domain(method, knowledge, domain, run.data, run.settings.audit, run.sequence.seed)
    for line in audit.describe_audit(found):
        context.tell(run, domain, line)
    _amend(file, [f"{domain.name}: {finding}" for finding in found.findings], audit=found.model_dump(mode="json"))


def read_slices(run: Run, method: Method, domain: Domain, folder: Path) -> Slices:
    """A domain's training slices, a target's without labels unless the method is an oracle that reads them."""
    with_label = domain.index == 0 or method.reads_target_labels
    train = domain.split("train")
    cases = tuple(case for case in train if case.labels) if with_label else tuple(map(without_label, train))
    volumes = (read_unchanged(case, run.sequence.task, run.data, with_label=with_label) for case in cases)
    return Slices(volumes, run.sequence.task, with_labels=with_label, private_folder=folder)


def read_source(run: Run, domain: Domain, folder: Path) -> tuple[Slices, Slices | None]:
    """The source's slices that are learnt from, and those held out (:mod:`garda.data.holdout`); None without any."""
    task = run.sequence.task

    def read(cases: Iterable[Case]) -> Iterator[Volume]:
        return (read_unchanged(case, task, run.data, with_label=True) for case in cases)

    def collect(volumes: Iterable[Volume]) -> Slices:
        return Slices(volumes, task, with_labels=True, private_folder=folder)

    train, held_out = holdout.split_cases(domain)
    if held_out:
        return collect(read(train)), collect(read(held_out))
    kept, parts = holdout.split_slices(read(train))
    return collect(kept), collect(parts) if parts else None


def score_domains(
    run: Run, method: Method, domain: Domain, knowledge: Knowledge, domains: Sequence[Domain], name: str = "scores"
) -> list[Score]:
    """Score every labelled test scan of some domains after a stage; ``name`` is the bar's."""
    scans = TestScans(domains, run.data, run.pseudonyms)
    bar = run.console.bar(f"{context.stage_name(domain)}-{name}")
    return evaluator.score_scans(scans, method, knowledge, domain.index, run.sequence.seed, bar)


def hold_falls(run: Run, domain: Domain, scores: Sequence[Score]) -> None:
    """Hold a stage whose own labels, or an earlier site's, say that it has done harm; no gate sees a label.

    A second call with the same scores changes nothing, and one after sealing says nothing.

    Args:
        run: whose console tells; the stage's record gets the reasons.
        domain: the stage's.
        scores: rows of this stage and the one before.
    """
    file = run.learnt(domain) / OPEN
    if file.exists() and (fallen := [*evaluator.describe_falls(domain.index, scores)]):
        for reason in fallen:
            context.tell(run, domain, f"warning: {reason}; look at its label maps before it is used there")
        _amend(file, fallen)


def _amend(file: Path, reasons: Iterable[str], **changes: object) -> None:
    """Reasons for a hold that were found after the gate has judged; what is refused stays refused."""
    record = StageRecord.model_validate(files.read_json(file))
    new = [reason for reason in reasons if reason not in record.reasons]
    decision = "hold" if new and record.decision == "promote" else record.decision
    changes |= {"reasons": (*record.reasons, *new), "decision": decision}
    files.write_json(file, record.model_copy(update=changes).model_dump(mode="json"))


def _no_choice(candidates: Sequence[object]) -> None:
    """Candidates are gone once a method has chosen, unless someone judges the choice."""
