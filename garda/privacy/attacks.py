"""Scores by which an attacker guesses who was a member; higher speaks for membership.

In the terms of GAN-Leaks (Chen, Yu, Zhang, Fritz, ACM CCS 2020, *full black-box generator*), a query x is
reconstructed by a victim generator as R(x|G_v), and the distance L(x, R(x|G_v)) is small for a member. Knowing nothing
but generated images, R(x|G_v) is the nearest of them. *Attack calibration* there takes off the distance that a
reference generator reaches which has not learnt x: L(x, R(x|G_v)) - L(x, R(x|G_r)), since some images are near to
everything. A nearness here is 1 minus a distance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from garda.compute import Compute
from garda.generators.base import Generator
from garda.generators.factorised import FactorisedGenerator
from garda.privacy.matching import windows
from garda.privacy.patients import Patients, in_groups, patient_means
from garda.privacy.spaces import BATCH, Space
from garda.seeds import derive_seed
from garda.task import Task

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
        images, owners = [], []
        for owner, (volume, many) in enumerate(zip(patients, wanted.tolist(), strict=True)):
            for index in random.permutation(len(volume))[np.arange(many) % len(volume)]:
                images.append(_cut(volume[int(index)], task.size, random))
                owners.append(owner)
        self.images, self._owners = torch.stack(images), torch.tensor(owners)

    def nearness(self, space: Space, patients: Patients, device: torch.device) -> Tensor:
        """(S,) nearness of every slice of all patients to the nearest reference slice of another patient."""
        found = []
        for owners, similarity in space.similarities(self.images.to(device), patients):
            own = self._owners[:, None] == owners
            found.append(similarity.masked_fill(own, -1).amax(dim=0))
        return torch.cat(found)


def mean_scores(
    patients: Patients, score: Score, size: tuple[int, int], block: int, compute: Compute
) -> NDArray[np.float64]:
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
            cut = windows(slices, size)
            parts = [score(compute.place(part)).float().cpu() for part in cut.flatten(0, 1).split(BATCH)]
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
        features, _ = generator.trunk(generator.anatomy(image))
        drawn = generator.branches[domain](features, generator.appearance(image))
        return -(drawn.float() - image).square().mean(dim=(1, 2, 3))

    return score


def reference_domain(generator: Generator, domain: int) -> int | None:
    """The domain whose branch serves as the reference generator; None where there is no other.

    For a target it is the source, which has never seen the target's images. The other way round trunk and encoders
    have, and the reference is a weaker one.
    """
    others = [other for other in range(len(generator.domains)) if other != domain]
    return others[0] if others else None


def _cut(image: Tensor, size: tuple[int, int], random: np.random.Generator) -> Tensor:
    """A random window of an image (C, H, W)."""
    row, column = (int(random.integers(whole - side + 1)) for whole, side in zip(image.shape[1:], size, strict=True))
    return image[:, row : row + size[0], column : column + size[1]]
