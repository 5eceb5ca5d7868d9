"""Means over patients, seeds and domains, with percentile bootstrap intervals."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval, in the unit of the values."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean with its interval and the number of patients behind it; NaN without any, no interval of one patient."""

    mean: float
    interval: Interval | None
    patients: int


def bootstrap_interval(
    values: Sequence[float], draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """Percentile bootstrap of the mean over patients; None under two patients.

    Efron and Tibshirani, *An introduction to the bootstrap*, 1993, ch. 13.

    Args:
        values: (n,) one finite number a patient, in any unit, which is also the interval's.
        draws: resamples of n patients, with replacement.
        seed: of the resampling; equal seeds give equal intervals.
        level: share of the resampled means that the interval holds, in (0, 1).

    >>> low, high = bootstrap_interval([0.81, 0.84, 0.90, 0.93])
    >>> 0.81 <= low < 0.87 < high <= 0.93
    True
    >>> bootstrap_interval([0.81]) is None
    True
    """
    return estimate([np.asarray(values, dtype=np.float64)[None]], draws, seed, level).interval


def estimate(domains: Sequence[Array], draws: int = 1000, seed: int = 0, level: float = 0.95) -> Estimate:
    """Mean over domains of the mean over patients, each patient's value the mean over its seeds.

    The interval is a percentile bootstrap on two levels (Davison and Hinkley 1997, section 3.8): seeds are drawn with
    replacement, one draw for all domains since a seed's run has been through all of them, then each domain's patients.
    A domain with one patient counts with its value as it is, since nothing tells how patients differ there.

    Args:
        domains: (seeds, patients) values of each domain, rows of the same seeds; NaN where there is none, but at
            least one number in every column.
        draws: resamples.
        seed: of the resampling.
        level: share of the resampled means that the interval holds, in (0, 1).

    Returns:
        the mean over ``domains``, the number of patients in all of them, and no interval where none has two.

    >>> two_seeds, lone_patient = np.array([[0.7, 0.9], [0.8, 1.0]]), np.array([[0.4], [0.4]])
    >>> found = estimate([two_seeds, lone_patient])
    >>> round(found.mean, 3), found.patients  # the domains count alike
    (0.625, 3)
    >>> estimate([lone_patient]).interval is None
    True
    """
    mean = mean_of_known(np.array([mean_of_known(_mean_along(values, 0)) for values in domains]))
    patients = sum(values.shape[1] for values in domains)
    if all(values.shape[1] < 2 for values in domains):
        return Estimate(mean, None, patients)
    means = _resampled_means(domains, draws, np.random.default_rng(seed))
    ends = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, Interval(*ends.tolist()), patients)


def _resampled_means(domains: Sequence[Array], draws: int, generator: np.random.Generator) -> Array:
    """(draws,) means over domains of resampled seeds and patients."""
    patients = [generator.integers(values.shape[1], size=(draws, values.shape[1])) for values in domains]
    seeds = generator.integers(len(domains[0]), size=(draws, len(domains[0])))
    means = []
    for values, drawn in zip(domains, patients, strict=True):
        if values.shape[1] == 1:
            means.append(np.full(draws, mean_of_known(values)))
            continue
        of_patients = _mean_along(values[seeds], 1)
        means.append(_mean_along(np.take_along_axis(of_patients, drawn, 1), 1))
    return _mean_along(np.array(means), 0)


def mean_of_known(values: Array | Iterable[float]) -> float:
    """Mean of what is not NaN, NaN where nothing is left.

    >>> mean_of_known([1.0, math.nan, 2.0])
    1.5
    """
    numbers = values if isinstance(values, np.ndarray) else np.array([*values], dtype=np.float64)
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if known.size else math.nan


def _mean_along(values: Array, axis: int) -> Array:
    """Means along one of several axes of what is not NaN, NaN where nothing is left."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
