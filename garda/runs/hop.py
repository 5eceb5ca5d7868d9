"""One hop: a package comes, this site's unlabelled scans are learnt, a package goes on. Nothing else travels.

What is learnt is what :mod:`garda.runs.run` would have learnt at this place of the sequence, to the bit: the same seed,
the same stages, the same knowledge before.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garda.core import files
from garda.core.config import SettingsOrigin
from garda.core.console import Console
from garda.core.errors import ConfigError, DataError, PackageError, Refused, RunFolderError, Undelivered, raise_all
from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.data import checks
from garda.data.manifest import digest_manifest
from garda.data.sequence import Domain, DomainSequence, read_domain
from garda.evaluation import evaluator
from garda.evaluation.evaluator import TestScans
from garda.evaluation.metrics import Score
from garda.evaluation.results import summarise
from garda.handover import format, ledger, load, signing, verify
from garda.handover.format import SETUP
from garda.handover.load import LoadedPackage
from garda.handover.settings import make_plan
from garda.handover.signing import Trusted
from garda.handover.verify import Verified
from garda.methods.oracles import Oracle
from garda.runs import context, stage
from garda.runs.context import Run
from garda.runs.journal import JOURNAL, STATE
from garda.runs.run import carry_out
from garda.runs.stage import Before, Known
from garda.runs.tracking import Tracker
from garda.safety.limits import SourceBaseline
from garda.training import distributed


@dataclass(frozen=True)
class Hop:
    """What one site does with a package.

    Attributes:
        package: what came: a folder, a zip file, or a run folder for its last stage.
        manifest: CSV of this site's scans; its name is the domain's, unless ``name`` says otherwise.
        data: the folder that its paths are relative to.
        out: what goes on: a folder, or a zip file where the name ends so.
        tracker: receives metrics.
        console: tells the user.
        stopping: asked within the stage.
        pseudonyms: key this site's digests.
        name: the domain's name.
        changes: settings of this machine; none that decides a result.
        trusted: whose signatures count; every line of the ledger must bear one. Empty for not asking.
        expected: the package's digest, as another channel has told it; empty for not asking.
        key: signs this site's line.
        forced: keep what the gate refuses; recorded in the ledger.
        audited: whether the generator is audited, while the images are there.
    """

    package: Path
    manifest: Path
    data: Path
    out: Path
    tracker: Tracker
    console: Console
    stopping: Stopping
    pseudonyms: Pseudonyms
    name: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    trusted: Collection[Trusted] = ()
    key: Ed25519PrivateKey | None = None
    forced: bool = False
    audited: bool = False
    expected: str = ""

    @property
    def domain(self) -> str:
        """The domain's name."""
        return self.name or self.manifest.stem

    @property
    def work(self) -> Path:
        """A run folder for the time of learning, beside ``out``; goes when the package is there."""
        return work_folder(self.out)


def work_folder(out: Path) -> Path:
    """Where a hop to ``out`` works.

    Raises:
        ConfigError: a path without a name.
    """
    if not out.name:
        raise ConfigError("--out", f"{out} names no folder and no file", "give one that is to be written")
    return out.absolute().with_name(f".{out.name}.work")


def adapt(hop: Hop) -> Verified:
    """Learn this site and write the package that goes on; the same call again goes on where the last one ended.

    Every rank of a hop on several devices calls this.

    Returns:
        what was written, found whole; the other ranks give what came.

    Raises:
        GardaError: the package, the manifest or a scan does not fit; nothing is learnt before all have been read.
        Refused: the gate has refused what was learnt; the package is written, with what was known before.
        Interrupted: a stop was asked for; a checkpoint has been written.
    """
    with verify.open_package(hop.package, hop.trusted, hop.expected) as came:
        if hop.out.exists():
            return _find_done(hop, came) if distributed.is_rank_zero() else came
        package = load.load_package(came.folder, hop.changes)
        if isinstance(package.method, Oracle):
            what = f"is of {package.setup.method!r}, which needs the images of earlier sites"
            raise PackageError(came.folder / SETUP, what, "take a package of a method under the contract")
        run = _prepare(hop, came, package)
        planned = make_plan(run.sequence, run.settings, hop.pseudonyms, came.digest, hop.forced)
        domain, method = run.sequence.domains[-1], package.method

        def follow() -> None:
            before = Before(
                came.folder, lambda: package.knowledge, lambda: cast(SourceBaseline, came.entries[0].reference)
            )
            stage.run_stage(run, method, domain, before, came.setup, partial(_score, run, package))
            if distributed.is_rank_zero():
                _deliver(run.kept(domain), hop.out)

        carry_out(run, planned, method, follow)
    if not distributed.is_rank_zero():
        return came
    _clear_work(hop)
    with verify.open_package(hop.out) as goes:
        return _passed(hop, goes)


def _find_done(hop: Hop, came: Verified) -> Verified:
    """What stands where this hop's package is to be, if it is that."""
    try:
        with verify.open_package(hop.out) as found:
            done = ledger.read_lines(found.folder)[:-1] == ledger.read_lines(came.folder)
            done = done and found.entries[-1].domain == hop.domain and _is_as_asked(hop, found)
    except PackageError:
        done = False
    if not done:
        raise RunFolderError(hop.out, "exists already, and is not what this hop gives", "give another --out")
    hop.tracker.catch_up()
    _clear_work(hop)
    return _passed(hop, found)


def _clear_work(hop: Hop) -> None:
    """Remove the work folder; what a tracker has not delivered stays in it, for the same command again."""
    try:
        hop.tracker.check_delivered()
    except Undelivered:
        for path in hop.work.iterdir():
            if path.is_dir():
                files.remove_folder(path)
            elif path.name not in (JOURNAL, STATE, "plan.json"):
                path.unlink()
    else:
        files.remove_folder(hop.work)


def _is_as_asked(hop: Hop, found: Verified) -> bool:
    """Whether a finished hop was made from this manifest and with these options."""
    last, number = found.entries[-1], len(found.entries)
    read_domain(hop.manifest, hop.domain, last.stage, format.read_task(found.setup, hop.out))  # a missing one is told
    manifest = hop.pseudonyms.digest("manifest", digest_manifest(hop.manifest))
    mine = None if hop.key is None else signing.public_digits(hop.key)
    signed = mine is None or any((own.line, own.key) == (number, mine) for own in found.signatures)
    audited = last.audit is not None or not hop.audited
    forced = last.forced or not hop.forced or last.decision != "refuse"
    return last.manifest == manifest and signed and audited and forced


def _passed(hop: Hop, found: Verified) -> Verified:
    """The package, unless the gate has refused what was learnt."""
    last = found.entries[-1]
    if not last.learnt:
        what = f"{last.domain} was refused and the package stays what it was, with a line that says so"
        raise Refused(
            hop.out, f"{what}: {last.reasons[0]}", "look at the scans; to overrule, give --force and another --out"
        )
    return found


def _prepare(hop: Hop, verified: Verified, learnt: LoadedPackage) -> Run:
    if hop.domain in learnt.knowledge.domains:
        raise DataError(hop.manifest, f"{hop.domain!r} has been met already", "give the site another --name")
    task, setup = learnt.method.task, learnt.setup
    index = len(verified.entries)
    before = tuple(Domain(entry.domain, entry.stage, ()) for entry in verified.entries)
    sequence = DomainSequence(
        name=setup.name,
        task=task,
        source=before[0],
        targets=(*before[1:], read_domain(hop.manifest, hop.domain, index, task)),
        method=setup.method,
        settings=learnt.settings,
        origin=SettingsOrigin(hop.package / SETUP, (("--set", hop.changes),)),
        digests={hop.domain: digest_manifest(hop.manifest)},
        seed=setup.seed,
    )
    run = Run(sequence, hop.data, hop.work, hop.tracker, hop.console, hop.stopping, hop.pseudonyms)
    return replace(run, key=hop.key, forced=hop.forced, audited=hop.audited)


def _score(run: Run, package: LoadedPackage, domain: Domain, known: Known) -> Sequence[Score]:
    """The site's own test scans, read by what came and by what goes on; nothing once that is sealed."""
    if run.kept(domain).exists() or not checks.labelled_cases(domain):
        return []
    method, before = package.method, package.knowledge
    came = stage.score_domains(run, method, domain, before, [domain], "scores-before")
    same = method.reads_equally(before, known(), domain.name)
    goes = came if same else stage.score_domains(run, method, domain, known(), [domain])
    scores = [*(replace(row, stage=domain.index - 1) for row in came), *goes]
    _publish(run, domain, scores)
    stage.hold_falls(run, domain, scores)
    return scores


def _publish(run: Run, domain: Domain, scores: Sequence[Score]) -> None:
    """Hand the site's Dice and HD95 after the stage to the tracker."""
    results = [result for result in summarise(scores) if result.stage == domain.index]
    values = {f"dice/{result.domain}/{result.name}": result.dice for result in results}
    values |= {f"hd95/{result.domain}/{result.name}": result.hd95 for result in results}
    known = {name: value for name, value in values.items() if value is not None}
    run.tracker.stage_ended(context.stage_name(domain), domain.index, known)


def _deliver(package: Path, out: Path) -> None:
    """The sealed package in its place, whole or not at all."""
    with files.writing(out):
        if out.suffix == ".zip":
            format.pack(package, out)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            os.replace(package, out)
            files.flush(out.absolute().parent)


def evaluate_package(
    package: Path,
    manifests: Sequence[Path],
    data: Path,
    console: Console,
    pseudonyms: Pseudonyms,
    trusted: Collection[Trusted] = (),
    expected: str = "",
) -> list[Score]:
    """Score a package on every labelled test scan of some sites; nothing is written.

    Args:
        package: a folder, a zip file, or a run folder for its last stage.
        manifests: CSV files; each one's name is its domain's, by which the domain's adapter is found.
        data: the folder that their paths are relative to.
        console: tells the user.
        pseudonyms: stand for patients and scans.
        trusted: whose signatures count, see :func:`garda.handover.signing.check_signatures`.
        expected: the package's digest, as another channel has told it; empty for not asking.

    Raises:
        GardaError: the package, a manifest or a scan does not fit.
    """
    with verify.open_package(package, trusted, expected) as verified:
        learnt = load.load_package(verified.folder)
    task, last = learnt.method.task, len(verified.entries) - 1
    domains = [read_domain(manifest, manifest.stem, last, task) for manifest in manifests]
    unlabelled = [domain for domain in domains if not checks.labelled_cases(domain)]
    raise_all([DataError(d.name, "has no labelled test scan", "give a manifest with one") for d in unlabelled])
    raise_all(
        checks.check_cases([case for domain in domains for case in checks.labelled_cases(domain)], task, data, console)
    )
    for domain in domains:
        if domain.name not in learnt.knowledge.domains:
            console.line(f"{domain.name} has not been met under this name: read as another site's scans")
    stems = [manifest.stem for manifest in manifests]
    twice = [manifest for manifest in manifests if stems.count(manifest.stem) > 1]
    raise_all([DataError(manifest, "has the name of another manifest", "rename one") for manifest in twice[:1]])
    scans = TestScans(domains, data, pseudonyms)
    bar = console.bar("scores")
    confusion = evaluator.Confusion(len(task.classes))
    scores = evaluator.score_scans(
        scans, learnt.method, learnt.knowledge, last, verified.setup.seed, bar, confusion.add
    )
    for line in confusion.advise(task.classes[1:]):
        console.line(line)
    return scores
