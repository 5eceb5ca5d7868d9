"""The evaluator, one of the two roles of a stage: reads labelled test scans and learns nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from monai.networks.nets import BasicUNet

from garda.core.pseudonyms import Pseudonyms
from garda.data import checks
from garda.data.sequence import Domain
from garda.data.volume import read_volume
from garda.evaluation import metrics
from garda.evaluation.metrics import Score
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models import inference


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
    scans: TestScans, method: Method, knowledge: Knowledge, stage: int, seed: int, progress: Callable[[int, int], None]
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
    total = sum(len(checks.labelled_cases(domain)) for domain in scans.domains)
    rows: list[Score] = []

    @lru_cache(maxsize=1)
    def network(name: str) -> BasicUNet:
        return method.compute.prepare(method.network_for(knowledge, name)).eval()

    for row in metrics.evaluate(
        scans.domains,
        lambda volume, name: inference.segment(
            network(name), method.standardise(knowledge, volume, name), task, method.compute
        ),
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
