"""Scoring, one of the two roles of a stage: it reads labelled test scans and learns nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from monai.networks.nets import BasicUNet
from torch import Tensor

from garda.core.pseudonyms import Pseudonyms
from garda.data import checks, volume
from garda.data.sequence import Domain
from garda.data.volume import Volume
from garda.evaluation import metrics
from garda.evaluation.metrics import Score
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models import inference


@dataclass(frozen=True)
class TestScans:
    """What is read to score a stage.

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

    Returns:
        a score for every labelled test scan and foreground class, see :class:`~garda.evaluation.metrics.Score`.

    Raises:
        DataError: a scan or its label cannot be read.
    """
    task = method.task
    total = sum(len(checks.labelled_cases(domain)) for domain in scans.domains)
    rows: list[Score] = []

    @lru_cache(maxsize=1)
    def network(name: str) -> BasicUNet:
        return method.compute.prepare(method.network_for(knowledge, name)).eval()

    def segment(scan: Volume, name: str) -> Tensor:
        return inference.segment(network(name), method.standardise(knowledge, scan, name), task, method.compute)

    read = partial(volume.read_volume, task=task, data=scans.data, with_label=True)
    classes, pseudonym = task.classes, scans.pseudonyms.pseudonym
    for row in metrics.evaluate(
        scans.domains, segment, read, stage=stage, seed=seed, classes=classes, pseudonym=pseudonym
    ):
        rows.append(row)
        if row.name == classes[-1]:
            progress(len(rows) // (len(classes) - 1), total)
    return rows
