"""The evaluator, one of the two roles of a stage: reads labelled test scans and learns nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from monai.networks.nets import BasicUNet

from garda.checks import labelled_cases
from garda.continual import patient_scores
from garda.evaluate import Score, evaluate
from garda.knowledge import Knowledge
from garda.learner import Run, stage_name
from garda.methods import Method
from garda.pseudonyms import Pseudonyms
from garda.segmenter import segment
from garda.sequence import Domain
from garda.volumes import read_volume

FALL = 0.02  # of Dice: what falls by less is noise of few test patients


def score(
    run: Run,
    method: Method,
    domain: Domain,
    knowledge: Knowledge,
    domains: Sequence[Domain],
    name: str = "scores",
) -> list[Score]:
    """The evaluator's part of one stage: every labelled test scan of the given domains; ``name`` is its bar's."""
    scans = TestScans(domains, run.data, run.pseudonyms)
    bar = run.reporter.bar(f"{stage_name(domain)}-{name}")
    return score_scans(scans, method, knowledge, domain.index, run.sequence.seed, bar)


@dataclass(frozen=True)
class TestScans:
    """What an evaluator reads.

    Attributes:
        domains: whose labelled test scans.
        data: the folder that manifest paths are relative to.
        pseudonyms: stand for patients and scans.
    """

    domains: Sequence[Domain]
    data: Path
    pseudonyms: Pseudonyms


def score_scans(
    scans: TestScans,
    method: Method,
    knowledge: Knowledge,
    stage: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Score]:
    """Score knowledge of a stage, one scan in memory at a time.

    Args:
        scans: what is read.
        method: how a domain is read.
        knowledge: what is scored.
        stage: the stage after which it is.
        seed: the run's.
        progress: receives (scans done, scans in all).
    """
    task = method.task
    total = sum(len(labelled_cases(domain)) for domain in scans.domains)
    rows: list[Score] = []

    @lru_cache(maxsize=1)
    def network(name: str) -> BasicUNet:
        return method.compute.prepare(method.network(knowledge, name)).eval()

    for row in evaluate(
        scans.domains,
        lambda volume, name: segment(network(name), method.standardise(knowledge, volume, name), task, method.compute),
        lambda case: read_volume(case, task, scans.data, with_label=True),
        stage=stage,
        seed=seed,
        classes=task.classes,
        pseudonym=scans.pseudonyms.pseudonym,
    ):
        rows.append(row)
        if row.name == task.classes[-1]:
            progress(len(rows) // (len(task.classes) - 1), total)
    return rows


def tell_fall(run: Run, domain: Domain, scores: Iterable[Score]) -> None:
    """Tell where a site's own labels say that its stage has done harm; no gate sees a label.

    Args:
        run: whose reporter tells.
        domain: the stage's.
        scores: rows of this stage and the one before.
    """
    own = [row for row in scores if row.domain == domain.name and row.stage in (domain.index - 1, domain.index)]
    before, after = (
        patient_scores([row for row in own if row.stage == stage], "dice").values()
        for stage in (domain.index - 1, domain.index)
    )
    if before and after and fmean(before) - fmean(after) > FALL:
        fell = f"from {fmean(before):.3f} to {fmean(after):.3f}"
        what = f"warning: Dice of {domain.name} fell {fell} in its own stage"
        run.reporter.line(f"{stage_name(domain)}: {what}; look at its label maps before it is used there")
