"""The order of things: learn the source, adapt to one target after another, score every domain after every stage.

This is the only file that knows the order. The learner sees one domain's training scans and never a test path or a
target's label; the evaluator reads labelled test scans and learns nothing.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import BasicUNet

from garda import __version__, files
from garda.cases import SPLITS
from garda.checks import check, labelled_cases, needed_cases, without_label
from garda.choice import Candidate
from garda.continual import Metric, matrix, patient_scores, summary, write_matrix
from garda.errors import Interrupted, RunFolderError
from garda.evaluate import Score, evaluate, read_scores, write_scores
from garda.figures import draw_matrix
from garda.judging import judge, judged_stages, keep_candidates, load_candidates
from garda.knowledge import Knowledge
from garda.methods import Bound, Method, build_method, parse_settings
from garda.plan import Plan, check_folder, claim, make_plan
from garda.pseudonyms import Pseudonyms
from garda.report import Reporter
from garda.seeds import derive_seed
from garda.segmenter import segment
from garda.sequence import Domain, DomainSequence
from garda.shelf import Shelf, Stages
from garda.slices import Slices
from garda.stopping import Stopping
from garda.tracking import RunDescription, Tracker
from garda.training import Stage
from garda.volumes import read_volume


@dataclass(frozen=True)
class Run:
    """One sequence in one run folder.

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
    """

    sequence: DomainSequence
    data: Path
    out: Path
    tracker: Tracker
    reporter: Reporter
    stopping: Stopping
    pseudonyms: Pseudonyms
    shelf: Path | None = None
    judging: bool = False

    @property
    def scores_file(self) -> Path:
        """Every score of the run, a row each."""
        return self.out / "scores.csv"

    @property
    def seconds_file(self) -> Path:
        """How long each piece of training took, by its name."""
        return self.out / "seconds.json"

    def kept(self, domain: Domain) -> Path:
        """Where a stage's knowledge is kept; the folder exists once the stage has been learnt."""
        return self.out / "stages" / stage_name(domain) / "knowledge"

    def to_learn(self) -> list[Domain]:
        """The domains whose stage has not been learnt yet."""
        return [domain for domain in self.sequence.domains if not self.kept(domain).exists()]


def run_sequence(run: Run) -> list[Score]:
    """Take a segmenter through the sequence; the same call again goes on where the last one ended.

    Returns:
        The scores of every labelled test scan after every stage.

    Raises:
        GardaError: nothing is trained before every file has been read and found good; see :mod:`garda.errors`.
    """
    sequence = run.sequence
    settings = parse_settings(sequence.method, sequence.settings, sequence.config)
    plan = make_plan(sequence, settings, run.pseudonyms)
    check_folder(run.out, plan)
    method = build_method(sequence.method, settings, sequence.task)
    if run.to_learn():
        method.check()
    labels = method.reads_target_labels
    check(sequence, run.data, needed_cases(sequence, _to_read(run, method), labels), run.reporter, labels)
    with claim(run.out, plan):
        run.tracker.start(describe(sequence, plan))
        try:
            scores = _follow(run, method)
        except BaseException as error:
            run.tracker.finish("stopped" if isinstance(error, Interrupted) else "failed")
            raise
        run.tracker.finish("finished")
    return scores


def _follow(run: Run, method: Method) -> list[Score]:
    before: Knowledge | None = None  # of the stage before; None where it has not been needed yet
    scores = read_scores(run.scores_file) if run.scores_file.exists() else []
    if any(row.stage >= len(run.sequence.domains) for row in scores):
        raise RunFolderError(run.scores_file, "holds stages of another run", "delete it, it is computed again")
    for domain in run.sequence.domains:
        run.stopping.check(stage_name(domain))
        knowledge: Knowledge | None = None
        if not run.kept(domain).exists():
            if before is None and domain.index > 0:
                before = method.load(run.kept(run.sequence.domains[domain.index - 1]))
            knowledge = learn(run, method, domain, before)
        _delete(_training_folder(run, domain))
        unscored = find_unscored(run, domain, scores)
        if unscored:
            knowledge = knowledge or method.load(run.kept(domain))
            if before is None and domain.index > 0:
                before = method.load(run.kept(run.sequence.domains[domain.index - 1]))
            names = {other.name for other in unscored}
            others = [row for row in scores if row.stage != domain.index or row.domain not in names]
            same = [other.name for other in unscored if before and reads_equally(method, before, knowledge, other)]
            copied = [
                replace(row, stage=domain.index)
                for row in scores
                if row.stage == domain.index - 1 and row.domain in same
            ]
            changed = [other for other in unscored if other.name not in same]
            rows = score(run, method, domain, knowledge, changed) if changed else []
            scores = sorted([*others, *copied, *rows], key=lambda row: row.stage)
        if run.judging:
            _judge(run, method, domain, knowledge)
        publish(run, domain, scores)
        before = knowledge
    return scores


def find_unscored(run: Run, domain: Domain, scores: Sequence[Score]) -> list[Domain]:
    """The domains of which a labelled test scan has no score after a stage."""
    count = Counter(row.domain for row in scores if row.stage == domain.index)
    foreground = len(run.sequence.task.classes) - 1
    scored = [other for other in run.sequence.domains if labelled_cases(other)]
    return [other for other in scored if count[other.name] != len(labelled_cases(other)) * foreground]


def _forget(candidates: Sequence[Candidate]) -> None:
    """Candidates are gone once a method has chosen, unless someone judges the choice."""


def _judge(run: Run, method: Method, domain: Domain, knowledge: Knowledge | None) -> None:
    folder, table = run.kept(domain).parent, run.out / "candidates.csv"
    if domain.index in judged_stages(table) or not (folder / "candidates.json").exists() or not labelled_cases(domain):
        return
    known = knowledge or method.load(run.kept(domain))

    def dice(candidate: Candidate) -> float:
        tried = replace(known, statistics={**known.statistics, domain.name: candidate.own})
        return float(np.mean([*patient_scores(score(run, method, domain, tried, [domain]), "dice").values()]))

    judge(table, domain.index, domain.name, load_candidates(folder), dice)


def reads_equally(method: Method, before: Knowledge, after: Knowledge, domain: Domain) -> bool:
    """Whether a stage has left a domain's network as it was to the bit, so that its scores are those of before."""
    old, new = (method.network(knowledge, domain.name).state_dict() for knowledge in (before, after))
    return old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


def learn(run: Run, method: Method, domain: Domain, before: Knowledge | None) -> Knowledge:
    """The learner's part of one stage: read a domain's training scans, learn, keep the knowledge."""
    folder = _make_private(_training_folder(run, domain))
    offer = partial(keep_candidates, run.kept(domain).parent) if run.judging else _forget
    stages = Stages(partial(_stage, run, domain, method.shared.checkpoint_seconds), _shelf(run, method), offer)
    if before is None:
        knowledge = method.learn_source(domain.name, read_slices(run, method, domain, folder), stages)
    elif isinstance(method, Bound):
        met = run.sequence.domains[: domain.index + 1]
        knowledge = method.adapt_jointly(before, {d.name: read_slices(run, method, d, folder) for d in met}, stages)
    else:
        knowledge = method.adapt(before, domain.name, read_slices(run, method, domain, folder), stages)
    knowledge.save(run.kept(domain))
    return knowledge


def read_slices(run: Run, method: Method, domain: Domain, folder: Path) -> Slices:
    """A domain's training slices, a target's without labels unless the method is a bound that reads them."""
    with_label = domain.index == 0 or method.reads_target_labels
    cases = domain.split("train") if with_label else tuple(map(without_label, domain.split("train")))
    volumes = (read_volume(case, run.sequence.task, run.data, with_label=with_label) for case in cases)
    return Slices(volumes, run.sequence.task, with_labels=with_label, private_folder=folder)


def _to_read(run: Run, method: Method) -> list[Domain]:
    """The domains whose training scans the stages to come read."""
    to_learn = run.to_learn()
    return list(run.sequence.domains) if to_learn and isinstance(method, Bound) else to_learn


def _shelf(run: Run, method: Method) -> Shelf:
    sequence = run.sequence
    context = {
        "garda": __version__,
        "task": sequence.task.model_dump(mode="json"),
        "source": [sequence.source.name, sequence.digests[sequence.source.name]],
        "seed": sequence.seed,
        "compute": method.shared.compute.model_dump(mode="json"),
    }
    return Shelf(run.shelf, context)


def score(run: Run, method: Method, domain: Domain, knowledge: Knowledge, domains: Sequence[Domain]) -> list[Score]:
    """The evaluator's part of one stage: every labelled test scan of the given domains."""
    sequence = run.sequence
    total = sum(len(labelled_cases(other)) for other in domains)
    rows: list[Score] = []
    progress = run.reporter.bar(f"{stage_name(domain)}-scores")

    @lru_cache(maxsize=1)
    def network(name: str) -> BasicUNet:
        return method.compute.prepare(method.network(knowledge, name)).eval()

    for row in evaluate(
        domains,
        lambda volume, name: segment(
            network(name), method.standardise(knowledge, volume, name), sequence.task, method.compute
        ),
        lambda case: read_volume(case, sequence.task, run.data, with_label=True),
        stage=domain.index,
        seed=sequence.seed,
        classes=sequence.task.classes,
        pseudonym=run.pseudonyms.pseudonym,
    ):
        rows.append(row)
        if row.name == sequence.task.classes[-1]:
            progress(len(rows) // (len(sequence.task.classes) - 1), total)
    return rows


def publish(run: Run, domain: Domain, scores: list[Score]) -> None:
    """Write scores and matrix of the stages so far and hand them to the tracker; harmless to repeat."""
    so_far = [row for row in scores if row.stage <= domain.index]
    if not so_far:
        return
    write_scores(run.scores_file, scores)
    names = [other.name for other in run.sequence.domains]
    note = run.sequence.task.same_patient_in_splits
    dice = matrix(scores, names, "dice")
    write_matrix(run.out / "matrix.csv", dice, note)
    write_matrix(run.out / "matrix_hd95.csv", matrix(scores, names, "hd95"), note)
    draw_matrix(run.out / "matrix.png", dice, note)
    run.tracker.stage_ended(stage_name(domain), domain.index, stage_metrics(so_far, run.sequence))
    for name in ("plan.json", "scores.csv", "matrix.csv", "matrix_hd95.csv", "matrix.png"):
        run.tracker.artifact(run.out / name)


def stage_name(domain: Domain) -> str:
    """Such as ``1-SiteB``."""
    return f"{domain.index}-{domain.name}"


def stage_metrics(scores: Sequence[Score], sequence: DomainSequence) -> dict[str, float]:
    """What is known after the last stage in ``scores``, by metric name.

    ``dice/<domain>/<class>`` and ``hd95/<domain>/<class>``, means over patients, and the continual numbers of the
    Dice matrix (see :func:`garda.continual.summary`).
    """
    names = [domain.name for domain in sequence.domains]
    metrics = summary(matrix(scores, names, "dice"))
    metrics_of_scans: tuple[Metric, ...] = ("dice", "hd95")
    for metric, class_name in itertools.product(metrics_of_scans, sequence.task.classes[1:]):
        last = matrix(scores, names, metric, class_name).values[-1]
        metrics |= {f"{metric}/{n}/{class_name}": float(v) for n, v in zip(names, last, strict=True) if v == v}
    return metrics


def describe(sequence: DomainSequence, plan: Plan) -> RunDescription:
    """The run as the tracker shows it."""
    manifests = [
        (domain.name, sequence.digests[domain.name], {split: len(domain.split(split)) for split in SPLITS})
        for domain in sequence.domains
    ]
    return RunDescription(
        name=sequence.name,
        method=sequence.method,
        seed=sequence.seed,
        parameters=plan.settings,
        manifests=manifests,
        stages=[stage_name(domain) for domain in sequence.domains],
    )


def _stage(run: Run, domain: Domain, checkpoint_seconds: float, part: str) -> Stage:
    """One piece of training of a domain's stage; equal seeds and names give equal stages, whatever the method."""
    name = f"{stage_name(domain)}-{part}"
    return Stage(
        name=name,
        folder=_training_folder(run, domain) / part,
        seed=derive_seed(run.sequence.seed, name),
        stopping=run.stopping,
        log=partial(run.tracker.losses, name),
        progress=run.reporter.bar(name),
        checkpoint_seconds=checkpoint_seconds,
        ended=partial(_note_seconds, run.seconds_file, name),
    )


def _note_seconds(file: Path, name: str, seconds: float) -> None:
    """Add a piece of training to the file."""
    noted = files.read_json(file) if file.exists() else {}
    files.write_json(file, noted | {name: round(seconds, 3)})


def _training_folder(run: Run, domain: Domain) -> Path:
    """Checkpoints of a stage in progress; deleted when its knowledge is kept."""
    return run.kept(domain).parent / "training"


def _make_private(folder: Path) -> Path:
    """A folder that only its owner can enter."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise files.describe(error, folder) from error
    return folder


def _delete(folder: Path) -> None:
    """Remove a folder; one that cannot be removed is told, since it may hold a discriminator."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise files.describe(error, folder) from error
