"""Scores by which an attacker guesses who was a member; higher speaks for membership.

In the terms of GAN-Leaks (Chen, Yu, Zhang, Fritz, ACM CCS 2020, *full black-box generator*), a query x is
reconstructed by a victim generator as R(x|G_v), and the distance L(x, R(x|G_v)) is small for a member. Knowing nothing
but generated images, R(x|G_v) is the nearest of them. *Attack calibration* there takes off the distance that a
reference generator reaches which has not learnt x: L(x, R(x|G_v)) - L(x, R(x|G_r)), since some images are near to
everything. A nearness here is 1 minus a distance.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from garda.core.seeds import derive_seed
from garda.data.task import Task
from garda.models.factorised import FactorisedGenerator
from garda.models.generator import Generator
from garda.safety import similarity
from garda.safety.audit_report import Attack, AuditSettings, Copies, Membership, Outliers, SpaceName
from garda.safety.patients import Array, Patients, in_groups, patient_means
from garda.safety.similarity import BATCH, Space
from garda.training.device import Compute

Score = Callable[[Tensor], Tensor]  # (B, C, h, w) at the task's size to (B,)


class References:
    """Real slices in the place of a reference generator: what an attacker has who knows other patients of the site.

    They are drawn from members and outsiders alike, and a slice is never compared with its own patient. So the
    reference cannot tell members from outsiders by itself: it would, were it made of outsiders alone, as soon as these
    happen to resemble each other.
    """

    def __init__(self, patients: Patients, count: int, task: Task, seed: int) -> None:
        """Draw the reference slices.

        Args:
            patients: at least two.
            count: slices, or windows of the task's size where slices are larger; from as many patients as there are.
            task: gives the size.
            seed: of the drawing.
        """
        random = np.random.default_rng(derive_seed(seed, "references"))
        wanted = np.bincount(np.resize(random.permutation(len(patients)), count), minlength=len(patients))
        images = []
        for volume, many in zip(patients, wanted.tolist(), strict=True):
            chosen = random.permutation(len(volume))[np.arange(many) % len(volume)]
            images += [_cut(volume[int(index)], task.size, random) for index in chosen]
        self.images = torch.stack(images)
        self._owners = torch.arange(len(patients)).repeat_interleave(torch.from_numpy(wanted))

    def nearness(self, space: Space, patients: Patients, device: torch.device) -> Tensor:
        """(S,) nearness in [-1, 1] of every slice of all patients to the nearest reference slice of another patient."""
        pairs = space.similarities(self.images.to(device), patients)
        return torch.cat([near.masked_fill(self._owners[:, None] == owners, -1).amax(dim=0) for owners, near in pairs])


def mean_scores(patients: Patients, score: Score, size: tuple[int, int], block: int, compute: Compute) -> Array:
    """(P,) mean of ``score`` over each patient's slices, which are cut into windows of ``size`` where they are larger.

    Args:
        patients: members and outsiders.
        score: what is averaged.
        size: (h, w) of what is scored.
        block: numbers of slices held at once; decides no result.
        compute: the device.
    """
    owners, values = [], []
    with torch.no_grad():
        for some, slices in in_groups(patients, block):
            cut = similarity.windows(slices, size)
            parts = [score(compute.to_device(part)).float().cpu() for part in cut.flatten(0, 1).split(BATCH)]
            owners.append(some)
            values.append(torch.cat(parts).unflatten(0, cut.shape[:2]).mean(dim=1))
    return patient_means(torch.cat(values), torch.cat(owners), len(patients))


def reconstruction(generator: Generator, domain: int) -> Score | None:
    """Minus the mean squared error of an image redrawn from its own codes; None for a family without encoders.

    The encoders lie in the generator's weights, so whoever has the generator has them (GAN-Leaks' *white-box*, where
    the search for the code that redraws x best is left to the encoders).
    """
    if not isinstance(generator, FactorisedGenerator):
        return None

    def score(image: Tensor) -> Tensor:
        features, _ = generator.decoder(generator.anatomy(image))
        drawn = generator.branches[domain](features, generator.appearance(image))
        return -(drawn.float() - image).square().mean(dim=(1, 2, 3))

    return score


def reference_domain(generator: Generator, domain: int) -> int | None:
    """The domain whose branch serves as the reference generator; None where there is no other.

    For a target it is the source, which has never seen the target's images. The other way round decoder and encoders
    have, and the reference is a weaker one.
    """
    return next((other for other in range(len(generator.domains)) if other != domain), None)


def _cut(image: Tensor, size: tuple[int, int], random: np.random.Generator) -> Tensor:
    """A random window of an image (C, H, W)."""
    row, column = (int(random.integers(whole - side + 1)) for whole, side in zip(image.shape[1:], size, strict=True))
    return image[:, row : row + size[0], column : column + size[1]]


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

    def share(of: Tensor) -> float:
        return share_of_copies(of[:members], of[members:], random)

    found = share(nearness)
    exchanged = [share(nearness[random.permutation(patients)]) for _ in range(settings.permutations)]
    low, high = stats.binomtest(round(found * generated), generated).proportion_ci(0.95, method="wilson")
    ends, chance = (float(low), float(high)), float(np.quantile(exchanged, PERCENTILE))
    size = min(members, patients - members)
    return Copies(space=space, share=found, interval=ends, chance=chance, generated=generated, patients=size)


def share_of_copies(members: Tensor, outsiders: Tensor, random: np.random.Generator) -> float:
    """Share of pairs of a generated image and a group of members that count as copies, in [0, 1].

    Args:
        members: (T, n) nearness of members to generated images.
        outsiders: (H, n) nearness of outsiders.
        random: draws the groups.

    >>> nearness = torch.arange(200.0).view(2, 100) / 200  # two patients, and how near 100 generated images come
    >>> share_of_copies(nearness, nearness, np.random.default_rng(0))  # by chance, one in a hundred
    0.01
    >>> share_of_copies(nearness + 1, nearness, np.random.default_rng(0))
    1.0
    """
    size = min(len(members), len(outsiders))
    ours, theirs = (_nearest_of_groups(side, size, random) for side in (members, outsiders))
    return float((ours > np.quantile(theirs, PERCENTILE)).mean())


def _nearest_of_groups(nearness: Tensor, size: int, random: np.random.Generator) -> Array:
    """(groups, n) nearness of the nearest of ``size`` patients; the last group is filled with patients of the first."""
    order = random.permutation(len(nearness))
    groups = np.resize(order, (math.ceil(len(order) / size), size))
    return np.stack([nearness[group].amax(dim=0).numpy() for group in groups])


ENOUGH = 100  # outsiders below which a false positive rate of 1 % is not one outsider
DRAWS = 1000  # resamples behind an interval
AT_ONCE = 10**7  # numbers of resamples held at once


def infer_membership(attack: Attack, scores: Array, members: int, seed: int, *, calibrated: bool = False) -> Membership:
    """AUC with its interval, and the true positive rate where there are outsiders enough.

    Args:
        attack: which score this is.
        scores: (P,) one a patient, members first; higher speaks for membership.
        members: number of members; the other patients are outsiders.
        seed: of the resampling.
        calibrated: whether a reference's score has been taken off.
    """
    ours, theirs = scores[:members], scores[members:]
    return Membership(
        attack=attack,
        calibrated=calibrated,
        auc=float(area(ours, theirs)),
        interval=area_interval(ours, theirs, derive_seed(seed, "membership", attack, int(calibrated))),
        members=len(ours),
        outsiders=len(theirs),
        tpr_at_1_percent_fpr=float((ours > np.quantile(theirs, 0.99)).mean()) if len(theirs) >= ENOUGH else None,
    )


def area(members: Array, outsiders: Array, axis: int = -1) -> Array:
    """Area under the receiver operating characteristic, U / (n m), in [0, 1]; ties count half.

    Mann and Whitney 1947; Hanley and McNeil 1982.

    Args:
        members: (n,) scores, or more of them along other axes.
        outsiders: (m,) scores, likewise.
        axis: along which the patients lie.

    >>> float(area(np.array([0.9, 0.8, 0.4]), np.array([0.5, 0.3])))  # five of six pairs
    0.8333333333333334
    """
    statistic = stats.mannwhitneyu(members, outsiders, axis=axis, method="asymptotic").statistic
    return statistic / (members.shape[axis] * outsiders.shape[axis])


def area_interval(members: Array, outsiders: Array, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap over patients, members and outsiders each on their own (Efron and Tibshirani 1993, ch. 13).

    Where all members score higher than all outsiders, every resample does too, and both bounds are 1.
    """
    batch, random = max(1, AT_ONCE // (len(members) + len(outsiders))), np.random.default_rng(seed)
    low, high = stats.bootstrap(
        (members, outsiders),
        area,
        n_resamples=DRAWS,
        batch=batch,
        confidence_level=level,
        method="percentile",
        rng=random,
    ).confidence_interval
    return float(low), float(high)


EQUAL = 0.95  # nearness from which two images count as equal
LEVEL = 0.01  # chance that any member stands out where none has been learnt by heart


def margins(generated: Tensor, reference: Tensor, owners: Tensor, patients: int) -> Array:
    """(P,) largest margin of each patient's slices.

    Args:
        generated: (S,) each slice's nearness to the nearest generated image, in [-1, 1].
        reference: (S,) its nearness to the nearest real slice of another patient.
        owners: (S,) patients of the slices.
        patients: P.
    """
    ours, theirs = (values.double().clamp(-EQUAL, EQUAL).atanh() for values in (generated, reference))
    largest = torch.full((patients,), -torch.inf, dtype=torch.float64)
    return largest.scatter_reduce(0, owners, ours - theirs, "amax").numpy()


def find_outliers(space: SpaceName, margin: Array, members: int) -> Outliers:
    """How many members stand out.

    Args:
        space: where nearness was measured.
        margin: (P,) of each patient, members first.
        members: number of members; the other patients, at least two, are outsiders.
    """
    ours, theirs = margin[:members], margin[members:]
    spread = max(float(theirs.std(ddof=1)), 1e-6) * math.sqrt(1 + 1 / len(theirs))
    above = stats.t.sf((ours - theirs.mean()) / spread, df=len(theirs) - 1)
    return Outliers(space=space, count=int((above < LEVEL / members).sum()), members=members, outsiders=len(theirs))
