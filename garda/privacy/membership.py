"""Membership inference: how well a score tells training patients from patients never used.

A patient's score is the mean over its slices: all slices of a patient are in the training set or none, which is
set membership (Hilprecht et al., *Monte Carlo and reconstruction membership inference attacks against generative
models*, PoPETs 2019), and a mean takes out what single slices add by chance. One slice learnt by heart among a
hundred hardly moves it; :mod:`garda.privacy.outliers` is there for that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, mannwhitneyu

from garda.privacy.figures import Attack, Membership
from garda.seeds import derive_seed

ENOUGH = 100  # outsiders below which a false positive rate of 1 % is not one outsider
DRAWS = 1000  # resamples behind an interval
AT_ONCE = 10**7  # numbers of resamples held at once


def infer_membership(
    attack: Attack, scores: NDArray[np.float64], members: int, seed: int, *, calibrated: bool = False
) -> Membership:
    """AUC with its interval, and the true positive rate where there are outsiders enough.

    Args:
        attack: which score this is.
        scores: (P,) one a patient, members first; higher speaks for membership.
        members: number of members; the other patients are outsiders.
        seed: of the resampling.
        calibrated: whether a reference's score has been taken off.
    """
    ours, theirs = scores[:members], scores[members:]
    rate = float((ours > np.quantile(theirs, 0.99)).mean()) if len(theirs) >= ENOUGH else None
    return Membership(
        attack=attack,
        calibrated=calibrated,
        auc=float(area(ours, theirs)),
        interval=area_interval(ours, theirs, derive_seed(seed, "membership", attack, int(calibrated))),
        members=len(ours),
        outsiders=len(theirs),
        tpr_at_1_percent_fpr=rate,
    )


def area(members: NDArray[np.float64], outsiders: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Area under the receiver operating characteristic, U / (n m) (Mann and Whitney 1947; Hanley and McNeil 1982)."""
    statistic = mannwhitneyu(members, outsiders, axis=axis, method="asymptotic").statistic
    return statistic / (members.shape[axis] * outsiders.shape[axis])


def area_interval(
    members: NDArray[np.float64], outsiders: NDArray[np.float64], seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap over patients, members and outsiders each on their own (Efron and Tibshirani 1993, ch. 13).

    Where all members score higher than all outsiders, every resample does too, and both bounds are 1.
    """
    found = bootstrap(
        (members, outsiders),
        area,
        n_resamples=DRAWS,
        batch=max(1, AT_ONCE // (len(members) + len(outsiders))),
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
