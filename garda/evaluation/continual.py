"""What a sequence learnt, kept and lost: the stage x domain matrix and the numbers read from it.

R[i, j] is the mean over domain j's test patients after stage i; stage 0 is the source, and stage i has seen the domains
0 to i. T is the last stage of the matrix. A domain that lacks a value which a number needs is left out of that number,
and a number to which no domain contributes is NaN.

Forgetting, transfer and plasticity take higher for better, so they are defined on Dice only: a matrix of distances is
refused. The average over the domains seen is defined on both.

>>> from garda.evaluation.metrics import Score
>>> dice = [[0.9, 0.4], [0.8, 0.7]]  # two stages of two sites, one patient each
>>> scores = [
...     Score(stage, site, "patient", "scan", 0, "organ", value, 1.0, "mm")
...     for stage, row in enumerate(dice)
...     for site, value in zip("ab", row)
... ]
>>> found = matrix(scores, ["a", "b"], "dice")
>>> {name: round(number, 3) for name, number in summary(found).items()}  # doctest: +NORMALIZE_WHITESPACE
{'average_over_seen': 0.75, 'forgetting': 0.1, 'forgetting_worst': 0.1, 'backward_transfer': -0.1, 'plasticity': 0.3}
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from garda.core import files
from garda.evaluation import bootstrap
from garda.evaluation.bootstrap import Array

if TYPE_CHECKING:
    from garda.evaluation.metrics import Score

Metric = Literal["dice", "hd95"]
SMALLEST_GAP = 0.02  # Dice; a ratio to less than this says nothing


class PatientKey(NamedTuple):
    """Whose score: one patient of one domain, after one stage of the run with one seed."""

    stage: int
    domain: str
    patient: str
    seed: int


class Forgetting(NamedTuple):
    """What was lost since a domain was segmented best, Dice in [0, 1]: mean over earlier domains, and the worst."""

    mean: float
    worst: float
    worst_domain: str | None


@dataclass(frozen=True)
class Matrix:
    """Scores of every domain after every stage, averaged over patients.

    Attributes:
        metric: ``dice`` in [0, 1], or ``hd95``.
        unit: of the values: empty for Dice, ``mm``, ``px``, or ``mm/px`` where the domains differ.
        name: the class, or None for the mean over classes.
        domains: names in the order of the sequence.
        values: (stages, domains) means in ``unit``; NaN where nothing was scored.
        intervals: (stages, domains, 2) lower and upper ends of the 95 % intervals, likewise; NaN where there is none.
        patients: number of patients scored in each domain.
    """

    metric: Metric
    unit: str
    name: str | None
    domains: tuple[str, ...]
    values: Array
    intervals: Array
    patients: tuple[int, ...]


def patient_scores(scores: Iterable[Score], metric: Metric, name: str | None = None) -> dict[PatientKey, float]:
    """One number a patient: each class averaged over the patient's scans, then the mean over classes.

    NaN (a class that neither label nor prediction has) is left out of both means; a patient with nothing else is
    left out altogether.

    Args:
        scores: rows of any stages, domains and seeds.
        metric: which column.
        name: one class; None for the mean over classes.
    """
    scans: dict[PatientKey, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        value = score.dice if metric == "dice" else score.hd95
        if name in (None, score.name) and not math.isnan(value):
            scans[PatientKey(score.stage, score.domain, score.patient, score.seed)][score.name].append(value)
    return {key: float(np.mean([np.mean(found) for found in classes.values()])) for key, classes in scans.items()}


def matrix(scores: Sequence[Score], domains: Sequence[str], metric: Metric, name: str | None = None) -> Matrix:
    """Gather scores into R. A patient scored with several seeds counts once, with the mean of the seeds.

    Args:
        scores: rows of every stage so far; rows of domains that are not named are left out.
        domains: every name of the sequence, in its order, those without labels included.
        metric: which column.
        name: one class; None for the mean over classes.

    Raises:
        ValueError: there are more stages than domains, so that R[j, j] would be another domain's.
    """
    stages = 1 + max((score.stage for score in scores), default=-1)
    if stages > len(domains):
        raise ValueError(f"expected all domains of the sequence, got {len(domains)} for {stages} stages")
    cells: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, value in patient_scores(scores, metric, name).items():
        cells[key.stage, key.domain][key.patient].append(value)
    values = np.full((stages, len(domains)), np.nan)
    intervals = np.full((stages, len(domains), 2), np.nan)
    for stage, domain in np.ndindex(values.shape):
        means = [float(np.mean(seeds)) for seeds in cells[stage, domains[domain]].values()]
        if means:
            values[stage, domain] = np.mean(means)
            intervals[stage, domain] = bootstrap.bootstrap_interval(means) or np.nan
    units = {score.unit for score in scores if score.domain in domains and metric != "dice"}
    patients = tuple(len({p for stage in range(stages) for p in cells[stage, domain]}) for domain in domains)
    return Matrix(metric, "/".join(sorted(units)), name, tuple(domains), values, intervals, patients)


def average_over_seen(matrix: Matrix) -> float:
    """Mean of R[T, 0..T], in the matrix's unit.

    >>> values = np.array([[0.9, 0.4], [0.8, 0.7]])
    >>> average_over_seen(Matrix("dice", "", None, ("a", "b"), values, np.full((2, 2, 2), np.nan), (5, 4)))
    0.75
    """
    return bootstrap.mean_of_known(_last(matrix))


def forgetting(matrix: Matrix) -> Forgetting:
    """Mean over j < T of max(0, max over i in j..T-1 of R[i, j] - R[T, j]), and the worst domain.

    Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018; a domain that improved counts 0.

    Raises:
        ValueError: the matrix holds distances.

    >>> values = np.array([[0.9, 0.4], [0.8, 0.7]])
    >>> lost = forgetting(Matrix("dice", "", None, ("a", "b"), values, np.full((2, 2, 2), np.nan), (5, 4)))
    >>> round(lost.mean, 3), round(lost.worst, 3), lost.worst_domain
    (0.1, 0.1, 'a')
    """
    values, last = _dice(matrix), _last(matrix)[:-1]
    best = np.array([np.fmax.reduce(values[j:-1, j]) for j in range(len(last))])
    lost = np.maximum(best - last, 0.0)
    if np.isnan(lost).all():
        return Forgetting(math.nan, math.nan, None)
    worst = int(np.nanargmax(lost))
    return Forgetting(bootstrap.mean_of_known(lost), float(lost[worst]), matrix.domains[worst])


def backward_transfer(matrix: Matrix) -> float:
    """Mean over j < T of R[T, j] - R[j, j].

    Lopez-Paz and Ranzato, "Gradient episodic memory for continual learning", NeurIPS 2017, section 2 (BWT).

    Raises:
        ValueError: the matrix holds distances.

    >>> values = np.array([[0.9, 0.4], [0.8, 0.7]])
    >>> found = Matrix("dice", "", None, ("a", "b"), values, np.full((2, 2, 2), np.nan), (5, 4))
    >>> round(backward_transfer(found), 3)
    -0.1
    """
    return bootstrap.mean_of_known(_last(matrix)[:-1] - np.diagonal(_dice(matrix))[: len(_last(matrix)) - 1])


def forward_transfer(matrix: Matrix) -> float:
    """Mean over 2 <= j <= T of R[j-1, j] - R[0, j]: what earlier targets gave to one not seen yet.

    After FWT of Lopez-Paz and Ranzato 2017, with the source model in the place of an untrained one.

    Raises:
        ValueError: the matrix holds distances.
    """
    values = _dice(matrix)
    return bootstrap.mean_of_known(np.array([values[j - 1, j] - values[0, j] for j in range(2, len(_last(matrix)))]))


def plasticity(matrix: Matrix) -> float:
    """Mean over 1 <= j <= T of R[j, j] - R[j-1, j]: what adapting to a domain gains on it.

    Raises:
        ValueError: the matrix holds distances.
    """
    values = _dice(matrix)
    return bootstrap.mean_of_known(np.array([values[j, j] - values[j - 1, j] for j in range(1, len(_last(matrix)))]))


def gap_closed(adapted: float, source_only: float, supervised: float) -> float:
    """(adapted - source_only) / (supervised - source_only) of one target's Dice after the last stage.

    0 is the source model, 1 a model trained on the target's labels. NaN where the gap is under 0.02 or unknown.

    >>> round(gap_closed(0.7, source_only=0.4, supervised=0.8), 3)
    0.75
    >>> gap_closed(0.7, source_only=0.79, supervised=0.8)
    nan
    """
    gap = supervised - source_only
    return (adapted - source_only) / gap if gap >= SMALLEST_GAP else math.nan


def summary(matrix: Matrix) -> dict[str, float]:
    """The numbers of a Dice matrix after its last stage, by name; what is undefined there is left out.

    Raises:
        ValueError: the matrix holds distances.
    """
    lost = forgetting(matrix)
    numbers = {"average_over_seen": average_over_seen(matrix), "forgetting": lost.mean, "forgetting_worst": lost.worst}
    numbers |= {measure.__name__: measure(matrix) for measure in (backward_transfer, forward_transfer, plasticity)}
    return {name: number for name, number in numbers.items() if not math.isnan(number)}


def score_arrays(values: Mapping[PatientKey, float], domains: Sequence[str]) -> list[Array]:
    """One stage's :func:`patient_scores` as an array a domain, for :func:`estimate`.

    Args:
        values: scores of one stage, of any seeds.
        domains: names; one without a score is left out.

    Returns:
        (seeds, patients) each, NaN where a patient lacks a seed; row s belongs to the same seed in all of them.
    """
    rows = {seed: row for row, seed in enumerate(sorted({key.seed for key in values}))}
    arrays = []
    for domain in domains:
        own = {key: value for key, value in values.items() if key.domain == domain}
        columns = {patient: column for column, patient in enumerate(dict.fromkeys(key.patient for key in own))}
        array = np.full((len(rows), len(columns)), np.nan)
        for key, value in own.items():
            array[rows[key.seed], columns[key.patient]] = value
        if columns:
            arrays.append(array)
    return arrays


def paired_difference(a: Mapping[PatientKey, float], b: Mapping[PatientKey, float]) -> dict[PatientKey, float]:
    """a - b of every patient and seed that both have: what :func:`score_arrays` and :func:`estimate` go on with.

    >>> p, q = PatientKey(1, "a", "p", 0), PatientKey(1, "a", "q", 0)
    >>> paired_difference({p: 0.75, q: 0.5}, {p: 0.5})
    {PatientKey(stage=1, domain='a', patient='p', seed=0): 0.25}
    """
    return {key: value - b[key] for key, value in a.items() if key in b}


def write_matrix(path: Path, matrix: Matrix, note: str | None = None) -> None:
    """Write R as CSV, a row a stage and a column a domain, NaN as an empty cell; the file appears whole or not at all.

    Args:
        path: the file to write.
        matrix: what is written.
        note: repeated in a last column, such as the reason why a patient stands in two splits.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    rows = enumerate(matrix.values.tolist())
    lines = ([stage, *("" if math.isnan(value) else value for value in row)] for stage, row in rows)
    files.write_csv(path, ["stage", *matrix.domains], lines, note)


def _dice(matrix: Matrix) -> Array:
    """R of a Dice matrix; ValueError for one of distances."""
    if matrix.metric != "dice":
        raise ValueError(f"defined on Dice, where higher is better, got a matrix of {matrix.metric}")
    return matrix.values


def _last(matrix: Matrix) -> Array:
    """(T + 1,) scores of the domains seen, after the last stage; (0,) before the first."""
    return matrix.values[-1, : len(matrix.values)] if len(matrix.values) else np.empty(0)
