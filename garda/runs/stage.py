"""One stage: learn, judge, save, score, seal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garda import __version__
from garda.core import files
from garda.core.console import Console
from garda.core.errors import Interrupted, TrainingError
from garda.core.pseudonyms import Pseudonyms
from garda.core.seeds import derive_seed
from garda.core.signals import Stopping
from garda.data import volume
from garda.data.checks import without_label
from garda.data.dataset import Slices
from garda.data.sequence import Domain, DomainSequence
from garda.evaluation import continual, evaluator, results
from garda.evaluation.evaluator import TestScans
from garda.evaluation.metrics import Score
from garda.handover import format, ledger, write
from garda.handover.format import OPEN
from garda.handover.ledger import FileRecord, StageRecord
from garda.handover.settings import Settings, parse_settings
from garda.handover.setup import Setup
from garda.methods.base import Method, Oracle
from garda.methods.knowledge import Knowledge
from garda.models.choice import Candidate
from garda.runs import choices
from garda.runs.tracking import Tracker
from garda.safety.gate import Gate, measure_baseline
from garda.safety.limits import GateDecision, SourceBaseline
from garda.training import distributed
from garda.training.cache import Cache, Stage
from garda.training.loop import Phase

SEED_LABELS = {"adapter": "share"}  # of pieces whose name is not the label of their seed


@dataclass(frozen=True)
class Run:
    """A sequence, or one hop of it, in one run folder.

    Attributes:
        sequence: what is learnt, in which order.
        data: the folder that manifest paths are relative to.
        out: the run folder.
        tracker: receives metrics and artifacts.
        reporter: tells the user.
        stopping: asked between and within stages.
        pseudonyms: stand for patients and cases in ``scores.csv``.
        shelf: a folder where runs of one comparison share what they learn from the source; None for none.
        judging: keep the candidates of each target's stage and write what their hidden Dice was.
        key: signs each stage's line of the ledger; None for no signature.
        gated: whether the gate judges targets; what it measures of the source is kept in any case.
        forced: keep what the gate refuses; recorded in the ledger.
        audited: whether each stage's generator is audited, while the images are there.
    """

    sequence: DomainSequence
    data: Path
    out: Path
    tracker: Tracker
    console: Console
    stopping: Stopping
    pseudonyms: Pseudonyms
    cache: Path | None = None
    judging: bool = False
    key: Ed25519PrivateKey | None = None
    gated: bool = True
    forced: bool = False
    audited: bool = False

    @cached_property
    def settings(self) -> Settings:
        """The sequence's, checked and with their defaults."""
        return parse_settings(self.sequence.method, self.sequence.settings, self.sequence.origin)

    @property
    def scores_file(self) -> Path:
        """Every score of the run, a row each."""
        return self.out / "scores.csv"

    @property
    def seconds_file(self) -> Path:
        """How long each piece of training took, by its name."""
        return self.out / "seconds.json"

    def kept(self, domain: Domain) -> Path:
        """Where a stage's package is kept; the folder exists once the stage has been learnt."""
        return format.stage_folder(self.out, domain.index, domain.name)

    def to_learn(self) -> list[Domain]:
        """The domains whose stage has not been learnt yet."""
        return [domain for domain in self.sequence.domains if not self.kept(domain).exists()]


def stage_name(domain: Domain) -> str:
    """Such as ``1-SiteB``."""
    return f"{domain.index}-{domain.name}"


def learn(
    run: Run, method: Method, domain: Domain, before: Knowledge | None, source: SourceBaseline | None
) -> Knowledge:
    """One stage: read a domain's training scans, learn, let the gate judge, keep the knowledge.

    Args:
        run: where, and who listens.
        method: how.
        domain: what is learnt.
        before: knowledge of the stage before; None for the source.
        source: what the gate knows of the source, as its stage's line of the ledger says; None for no gate.

    Returns:
        what is kept: what was learnt, or ``before`` where the gate has refused it.
    """
    folder = make_private(training_folder(run, domain))
    offer = partial(choices.keep_candidates, run.kept(domain).parent) if run.judging else _forget
    stages = Stage(partial(_stage, run, domain, method.shared.checkpoint_seconds), _shelf(run, method), offer)
    slices = read_slices(run, method, domain, folder)
    if before is None:
        distributed.call(domain.name)
        knowledge = method.learn_source(domain.name, slices, stages)
        measured = measure_baseline(method, knowledge, slices, run.settings.gate, run.sequence.seed)
        found: dict[str, Any] = {"decision": "source", "reference": measured}
    elif source is None or isinstance(method, Oracle):
        knowledge, found = _learn_ungated(run, method, domain, before, slices, stages), {"decision": "ungated"}
    else:
        gate = Gate(method, source, run.settings.gate, run.sequence.seed, run.forced)
        knowledge, verdict = gate.pass_target(before, domain.name, slices, stages)
        found = _judge(run, domain, verdict)
    record = StageRecord(
        stage=domain.index,
        domain=domain.name,
        month=f"{date.today():%Y-%m}",
        garda=__version__,
        manifest=run.pseudonyms.digest("manifest", run.sequence.digests[domain.name]),
        patients=len({case.patient for case in domain.split("train")}),
        scans=len(domain.split("train")),
        slices=len(slices),
        deleted=_records(folder),
        **found,
    )
    knowledge.save(run.kept(domain), {OPEN: record.model_dump(mode="json")})
    return knowledge


def _learn_ungated(
    run: Run, method: Method, domain: Domain, before: Knowledge, slices: Slices, stages: Stage
) -> Knowledge:
    distributed.call(domain.name)
    return _adapt(run, method, domain, before, slices, stages, training_folder(run, domain))


def _adapt(
    run: Run, method: Method, domain: Domain, before: Knowledge, slices: Slices, stages: Stage, folder: Path
) -> Knowledge:
    if not isinstance(method, Oracle):
        return method.adapt(before, domain.name, slices, stages)
    earlier = run.sequence.domains[: domain.index]
    met = {other.name: read_slices(run, method, other, folder) for other in earlier}
    return method.adapt_jointly(before, {**met, domain.name: slices}, stages)


def learn_along(run: Run, method: Method, before: Callable[[Domain], Knowledge]) -> None:
    """A follower's part of a run: the stages that the leader calls; nothing is written or kept.

    Args:
        run: the leader's, of which only what is read counts.
        method: how.
        before: what a target's stage begins with, as the leader has kept it: the gate's word is the leader's.
    """
    domains = {domain.name: domain for domain in run.sequence.domains}
    for name in distributed.calls():
        domain = domains[name]
        with files.private_temporary_folder() as folder, suppress(TrainingError, Interrupted):  # the leader tells
            slices = read_slices(run, method, domain, folder)
            stages = Stage(partial(_stage_along, run, domain, folder))
            if domain.index == 0:
                method.learn_source(domain.name, slices, stages)
            else:
                _adapt(run, method, domain, before(domain), slices, stages, folder)


def _judge(run: Run, domain: Domain, verdict: GateDecision) -> dict[str, Any]:
    """A verdict as it stands in the ledger; what is not promoted is told."""
    forced = run.forced and verdict.decision == "refuse"
    for reason in verdict.reasons:
        run.console.line(f"{stage_name(domain)}: {reason}")
    if verdict.decision != "promote":
        what = {"hold": "held, look at it before it is used", "refuse": "refused, the site is left out"}
        run.console.line(f"{stage_name(domain)}: {'refused, overruled' if forced else what[verdict.decision]}")
    checks = [check.model_dump(mode="json") for check in verdict.checks]
    return {"decision": verdict.decision, "reasons": verdict.reasons, "checks": checks, "forced": forced}


def forget_training(run: Run, domain: Domain) -> None:
    """Delete the checkpoints of a stage; what cannot be removed is told, since it may hold a discriminator."""
    folder = training_folder(run, domain)
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise files.describe(error, folder) from error


def seal_stage(run: Run, setup: Setup, domain: Domain, previous: Path | None, scores: Sequence[Score]) -> None:
    """Make a package of a stage that has been learnt and scored; see :func:`garda.handover.write.write_package`."""
    name = f"{stage_name(domain)}-"
    seconds = {part.removeprefix(name): took for part, took in read_seconds(run).items() if part.startswith(name)}
    write.write_package(run.kept(domain), previous, setup, results.summarise(scores), seconds, run.key)


def read_slices(run: Run, method: Method, domain: Domain, folder: Path) -> Slices:
    """A domain's training slices, a target's without labels unless the method is a bound that reads them."""
    with_label = domain.index == 0 or method.reads_target_labels
    cases = domain.split("train") if with_label else tuple(map(without_label, domain.split("train")))
    volumes = (volume.read_volume(case, run.sequence.task, run.data, with_label=with_label) for case in cases)
    return Slices(volumes, run.sequence.task, with_labels=with_label, private_folder=folder)


def read_seconds(run: Run) -> dict[str, float]:
    """How long each piece of training took, by its name; nothing where nothing has been noted."""
    noted: dict[str, float] = files.read_json(run.seconds_file) if run.seconds_file.exists() else {}
    return noted


def _shelf(run: Run, method: Method) -> Cache:
    if run.cache is None or distributed.count() > 1:  # followers learn along, and must not wait for what is not learnt
        return Cache()
    sequence = run.sequence
    context = {
        "garda": __version__,
        "task": sequence.task.model_dump(mode="json"),
        "source": [sequence.source.name, sequence.digests[sequence.source.name]],
        "seed": sequence.seed,
        "compute": method.shared.compute.model_dump(mode="json"),
    }
    return Cache(run.cache, context)


def _stage(run: Run, domain: Domain, checkpoint_seconds: float, part: str) -> Phase:
    """One piece of training of a domain's stage; equal seeds and names give equal stages, whatever the method."""
    name = f"{stage_name(domain)}-{part}"
    return Phase(
        name=name,
        folder=training_folder(run, domain) / part,
        seed=_seed_of(run, domain, part),
        stopping=run.stopping,
        log=partial(run.tracker.losses, name),
        progress=run.console.bar(name),
        checkpoint_seconds=checkpoint_seconds,
        ended=partial(_note_seconds, run, name),
    )


def _stage_along(run: Run, domain: Domain, folder: Path, part: str) -> Phase:
    """A follower's twin of :func:`_stage`, which tells nobody anything."""
    name = f"{stage_name(domain)}-{part}"
    return Phase(name, folder / part, _seed_of(run, domain, part), run.stopping)


def _seed_of(run: Run, domain: Domain, part: str) -> int:
    """What a piece is called may change; the label that its seed follows from may not."""
    return derive_seed(run.sequence.seed, f"{stage_name(domain)}-{SEED_LABELS.get(part, part)}")


def _note_seconds(run: Run, name: str, seconds: float) -> None:
    files.write_json(run.seconds_file, read_seconds(run) | {name: round(seconds, 3)})


def _records(folder: Path) -> tuple[FileRecord, ...]:
    """Records of everything that lies below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(ledger.record(path, path.relative_to(folder).as_posix()) for path in found)


def training_folder(run: Run, domain: Domain) -> Path:
    """Checkpoints of a stage in progress; deleted when its knowledge is kept."""
    return run.kept(domain).parent / "training"


def make_private(folder: Path) -> Path:
    """A folder that only its owner can enter."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise files.describe(error, folder) from error
    return folder


def _forget(candidates: Sequence[Candidate]) -> None:
    """Candidates are gone once a method has chosen, unless someone judges the choice."""


FALL = 0.02  # of Dice: what falls by less is noise of few test patients


def score(
    run: Run, method: Method, domain: Domain, knowledge: Knowledge, domains: Sequence[Domain], name: str = "scores"
) -> list[Score]:
    """The evaluator's part of one stage: every labelled test scan of the given domains; ``name`` is its bar's."""
    scans = TestScans(domains, run.data, run.pseudonyms)
    bar = run.console.bar(f"{stage_name(domain)}-{name}")
    return evaluator.score_scans(scans, method, knowledge, domain.index, run.sequence.seed, bar)


def warn_regression(run: Run, domain: Domain, scores: Iterable[Score]) -> None:
    """Tell where a site's own labels say that its stage has done harm; no gate sees a label.

    Args:
        run: whose reporter tells.
        domain: the stage's.
        scores: rows of this stage and the one before.
    """
    own = [row for row in scores if row.domain == domain.name and row.stage in (domain.index - 1, domain.index)]
    before, after = (
        continual.patient_scores([row for row in own if row.stage == stage], "dice").values()
        for stage in (domain.index - 1, domain.index)
    )
    if before and after and fmean(before) - fmean(after) > FALL:
        fell = f"from {fmean(before):.3f} to {fmean(after):.3f}"
        what = f"warning: Dice of {domain.name} fell {fell} in its own stage"
        run.console.line(f"{stage_name(domain)}: {what}; look at its label maps before it is used there")
