"""Scores as they travel: means over patients, never a row a patient."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from garda.core.config import Config
from garda.data.sequence import DomainName
from garda.evaluation import continual
from garda.evaluation.continual import Metric

if TYPE_CHECKING:
    from garda.evaluation.metrics import Score

RESULTS = "scores.csv"


class Result(Config):
    """One class of one domain after one stage.

    Attributes:
        stage: stage of the sequence.
        domain: the domain that was read.
        name: the class.
        patients: number of test patients.
        dice: mean over patients, in [0, 1]; None where no patient has the class in label or prediction.
        hd95: 95th percentile of the Hausdorff distance, likewise, in ``unit``.
        unit: ``mm`` or ``px``.
    """

    stage: int
    domain: DomainName
    name: str
    patients: int = Field(ge=0)
    dice: float | None
    hd95: float | None
    unit: str

    @property
    def key(self) -> tuple[int, str, str]:
        """What it is about."""
        return self.stage, self.domain, self.name


def summarise(scores: Sequence[Score]) -> list[Result]:
    """Scores of scans as means over patients, by stage, domain and class, in the order in which they come.

    >>> from garda.evaluation.metrics import Score
    >>> scans = [Score(0, "a", "p", case, 0, "organ", dice, 2.0, "mm") for case, dice in (("1", 0.5), ("2", 1.0))]
    >>> print(format_results(summarise(scans)), end="")
    stage,domain,name,patients,dice,hd95,unit
    0,a,organ,1,0.75,2.0,mm
    """
    keys = dict.fromkeys((score.stage, score.domain, score.name, score.unit) for score in scores)
    results = []
    for stage, domain, name, unit in keys:
        own = [score for score in scores if (score.stage, score.domain) == (stage, domain)]
        dice, hd95 = _mean(own, "dice", name), _mean(own, "hd95", name)
        patients = len({score.patient for score in own})
        results.append(
            Result(stage=stage, domain=domain, name=name, patients=patients, dice=dice, hd95=hd95, unit=unit)
        )
    return results


def _mean(scores: Sequence[Score], metric: Metric, name: str) -> float | None:
    values = [*continual.patient_scores(scores, metric, name).values()]
    return math.fsum(values) / len(values) if values else None


def format_results(results: Iterable[Result]) -> str:
    """CSV with a header, an empty cell for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Result.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.model_dump() for result in results)
    return text.getvalue()
