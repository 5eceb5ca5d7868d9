"""One hop: a package comes, this site's unlabelled scans are learnt, a package goes on. Nothing else travels.

What is learnt is what :mod:`garda.run` would have learnt at this place of the sequence, to the bit: the same seed, the
same stages, the same knowledge before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garda import parallel, whole_batch
from garda.audit import audit_stage
from garda.checks import check, labelled_cases, needed_cases
from garda.config import SettingsOrigin
from garda.errors import ConfigError, DataError, Interrupted, PackageError, Refused, RunFolderError
from garda.evaluate import Score
from garda.evaluator import score, tell_fall
from garda.files import describe as describe_error
from garda.handover.learnt import HERE, Learnt, load_package
from garda.handover.ledger import read_lines
from garda.handover.package import SETUP, is_package, opened, pack, read_task
from garda.handover.results import summarise
from garda.handover.signing import Trusted, public_digits
from garda.handover.verify import Verified, verify
from garda.learner import Run, forget_training, learn, learn_along, make_private, seal_stage, stage_name
from garda.methods import Bound
from garda.plan import check_folder, claim
from garda.pseudonyms import Pseudonyms
from garda.report import Reporter
from garda.run import describe
from garda.sequence import Domain, DomainSequence, read_domain
from garda.settings import make_plan
from garda.stopping import Stopping
from garda.tracking import Tracker


@dataclass(frozen=True)
class Hop:
    """What one site does with a package.

    Attributes:
        package: what came: a folder, a zip file, or a run folder for its last stage.
        manifest: CSV of this site's scans; its name is the domain's, unless ``name`` says otherwise.
        data: the folder that its paths are relative to.
        out: what goes on: a folder, or a zip file where the name ends so.
        tracker: receives metrics.
        reporter: tells the user.
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
    reporter: Reporter
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


def adapt(hop: Hop) -> Path:
    """Learn this site and write the package that goes on; the same call again goes on where the last one ended.

    Returns:
        ``hop.out``.

    Raises:
        GardaError: the package, the manifest or a scan does not fit; nothing is learnt before all have been read.
        Refused: the gate has refused what was learnt; the package is written, with what was known before.
        Interrupted: a stop was asked for; a checkpoint has been written.
    """
    with opened(hop.package) as folder:
        verified = verify(folder, hop.trusted, hop.expected)
        if hop.out.exists():
            return _find_done(hop, folder)
        learnt = load_package(folder, hop.changes)
        if isinstance(learnt.method, Bound):
            what = f"is of {learnt.setup.method!r}, which needs the images of earlier sites"
            raise PackageError(folder / SETUP, what, "take a package of a method under the contract")
        run = _prepare(hop, verified, learnt)
        domain = run.sequence.domains[-1]
        settings = run.settings
        plan = make_plan(run.sequence, settings, hop.pseudonyms, verified.digest, hop.forced)
        check_folder(run.out, plan)
        learnt.method.check()
        whole_batch.check_batches(settings, plan.settings, parallel.count())
        to_learn = [] if run.kept(domain).exists() else [domain]
        check(run.sequence, hop.data, needed_cases(run.sequence, to_learn), hop.reporter)
        make_private(run.out)
        with claim(run.out, plan), parallel.leading(run.stopping, bool(to_learn)):
            hop.tracker.start(describe(run.sequence, plan))
            try:
                _learn(run, verified, learnt, folder)
            except BaseException as error:
                hop.tracker.finish("stopped" if isinstance(error, Interrupted) else "failed")
                raise
            hop.tracker.finish("finished")
            _deliver(run.kept(domain), hop.out)
    _remove(run.out)
    return _check_passed(hop)


def enlist(changes: Mapping[str, Any], devices: int, nodes: int) -> bool:
    """Whether this process leads a hop, whose machine's settings are ``changes``; see :func:`garda.parallel.enlist`."""
    compute = {**HERE["compute"], **changes.get("compute", {})}
    return parallel.enlist(devices, nodes, compute["accelerator"])


def follow(hop: Hop) -> None:
    """The part of a process that does not lead, as in :func:`garda.run.follow_sequence`."""
    with opened(hop.package) as folder:
        learnt = load_package(folder, hop.changes)
        run = _prepare(hop, verify(folder, hop.trusted, hop.expected), learnt)
        with parallel.following(hop.stopping):
            learn_along(run, learnt.method, lambda domain: learnt.knowledge)


def _find_done(hop: Hop, package: Path) -> Path:
    """What stands where this hop's package is to be, if it is that."""
    try:
        with opened(hop.out) as there:
            lines = read_lines(there)
            found = verify(there)
            done = lines[:-1] == read_lines(package) and found.entries[-1].domain == hop.domain
            done = done and _is_as_asked(hop, found)
    except PackageError:
        done = False
    if not done:
        raise RunFolderError(hop.out, "exists already, and is not what this hop gives", "give another --out")
    _remove(hop.work)
    return _check_passed(hop)


def _is_as_asked(hop: Hop, found: Verified) -> bool:
    """Whether a finished hop was made from this manifest and with these options."""
    last, number = found.entries[-1], len(found.entries)
    read_domain(hop.manifest, hop.domain, last.stage, read_task(found.setup, hop.out))  # a missing one is told
    manifest = hop.pseudonyms.digest("manifest", hashlib.sha256(hop.manifest.read_bytes()).hexdigest())
    mine = None if hop.key is None else public_digits(hop.key)
    signed = mine is None or any((own.line, own.key) == (number, mine) for own in found.signatures)
    audited = last.audit is not None or not hop.audited
    forced = last.forced or not hop.forced or last.decision != "refuse"
    return last.manifest == manifest and signed and audited and forced


def _remove(work: Path) -> None:
    try:
        if work.exists():
            shutil.rmtree(work)
    except OSError as error:
        raise describe_error(error, work) from error


def _check_passed(hop: Hop) -> Path:
    """The package, unless the gate has refused what was learnt."""
    with opened(hop.out) as folder:
        last = verify(folder).entries[-1]
    if not last.learnt:
        what = f"{last.domain} was refused and the package stays what it was, with a line that says so"
        raise Refused(
            hop.out, f"{what}: {last.reasons[0]}", "look at the scans; to overrule, give --force and another --out"
        )
    return hop.out


def _prepare(hop: Hop, verified: Verified, learnt: Learnt) -> Run:
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
        digests={hop.domain: hashlib.sha256(hop.manifest.read_bytes()).hexdigest()},
        seed=setup.seed,
    )
    run = Run(sequence, hop.data, hop.work, hop.tracker, hop.reporter, hop.stopping, hop.pseudonyms)
    return replace(run, key=hop.key, forced=hop.forced, audited=hop.audited)


def _learn(run: Run, verified: Verified, learnt: Learnt, previous: Path) -> None:
    """Learn, score and seal the last domain, as far as that has not been done."""
    domain = run.sequence.domains[-1]
    knowledge = None
    if not run.kept(domain).exists():
        knowledge = learn(run, learnt.method, domain, learnt.knowledge, verified.entries[0].reference)
    if run.audited and not is_package(run.kept(domain)):
        knowledge = knowledge or learnt.method.load(run.kept(domain))
        audit_stage(run, learnt.method, domain, knowledge)
    forget_training(run, domain)
    if not is_package(run.kept(domain)):
        knowledge = knowledge or learnt.method.load(run.kept(domain))
        scores = _score(run, learnt, replace(learnt, knowledge=knowledge), domain)
        _publish(run, domain, scores)
        tell_fall(run, domain, scores)
        seal_stage(run, verified.setup, domain, previous, scores)


def _score(run: Run, before: Learnt, after: Learnt, domain: Domain) -> Sequence[Score]:
    """The site's own test scans, read by what came and by what goes on."""
    if not labelled_cases(domain):
        return []
    came = score(run, before.method, domain, before.knowledge, [domain], "scores-before")
    same = after.method.reads_equally(before.knowledge, after.knowledge, domain.name)
    goes = came if same else score(run, after.method, domain, after.knowledge, [domain])
    return [*(replace(row, stage=domain.index - 1) for row in came), *goes]


def _publish(run: Run, domain: Domain, scores: Sequence[Score]) -> None:
    """Hand the site's Dice and HD95 after the stage to the tracker."""
    results = [result for result in summarise(scores) if result.stage == domain.index]
    values = {f"dice/{result.domain}/{result.name}": result.dice for result in results}
    values |= {f"hd95/{result.domain}/{result.name}": result.hd95 for result in results}
    known = {name: value for name, value in values.items() if value is not None}
    run.tracker.stage_ended(stage_name(domain), domain.index, known)


def _deliver(package: Path, out: Path) -> None:
    """The sealed package in its place, whole or not at all."""
    try:
        if out.suffix == ".zip":
            pack(package, out)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            os.replace(package, out)
    except OSError as error:
        raise describe_error(error, out) from error
