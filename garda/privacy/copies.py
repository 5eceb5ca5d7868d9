"""Copy detection: which generated images lie nearer to training patients than they lie to patients never used.

Two sets of patients can only be compared when they are equally large: the more there are, the nearer lies the nearest.
So members and outsiders meet generated images in groups of k patients, k being the number of the fewer. Every member
and every outsider is in a group. Whole patients are grouped, since slices of one patient are alike.

A generated image counts as a copy of a group of members where its nearest slice among theirs is nearer than 99 % of
generated images have their nearest slice in a group of outsiders. If the generator has learnt nothing of its members
that it has not learnt of the population, members and outsiders can be exchanged, and 1 % is what is expected. With few
patients, one typical patient among the members moves the share a lot: what chance gives is therefore measured by
exchanging them at random (a permutation test, Good 2005, section 3.2), which counts patients and not generated images.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from garda.privacy.figures import AuditSettings, Copies, SpaceName
from garda.seeds import derive_seed

PERCENTILE = 0.99  # of the nearness to outsiders, and of the shares that chance gives


def detect_copies(space: SpaceName, nearness: Tensor, members: int, settings: AuditSettings, seed: int) -> Copies:
    """The share of copies, with what chance gives.

    Args:
        space: where nearness was measured.
        nearness: (P, n) of each patient's nearest slice to each of n generated images, members first.
        members: number of members; the other patients are outsiders.
        settings: number of permutations.
        seed: of groups and permutations.
    """
    random = np.random.default_rng(derive_seed(seed, "copies", space))
    patients, generated = nearness.shape
    share = share_of_copies(nearness[:members], nearness[members:], random)
    exchanged = []
    for _ in range(settings.permutations):
        order = torch.from_numpy(random.permutation(patients))
        exchanged.append(share_of_copies(nearness[order[:members]], nearness[order[members:]], random))
    interval = binomtest(round(share * generated), generated).proportion_ci(0.95, method="wilson")
    return Copies(
        space=space,
        share=share,
        interval=(float(interval.low), float(interval.high)),
        chance=float(np.quantile(exchanged, PERCENTILE)),
        generated=generated,
        patients=min(members, patients - members),
    )


def share_of_copies(members: Tensor, outsiders: Tensor, random: np.random.Generator) -> float:
    """Share of pairs of a generated image and a group of members that count as copies, in [0, 1].

    Args:
        members: (T, n) nearness of members to generated images.
        outsiders: (H, n) nearness of outsiders.
        random: draws the groups.
    """
    size = min(len(members), len(outsiders))
    ours, theirs = (_nearest_of_groups(side, size, random) for side in (members, outsiders))
    return float((ours > np.quantile(theirs, PERCENTILE)).mean())


def _nearest_of_groups(nearness: Tensor, size: int, random: np.random.Generator) -> np.ndarray:
    """(groups, n) nearness of the nearest of ``size`` patients; the last group is filled with patients of the first."""
    order = random.permutation(len(nearness))
    groups = np.resize(order, (math.ceil(len(order) / size), size))
    return np.stack([nearness[torch.from_numpy(group)].amax(dim=0).numpy() for group in groups])
