"""How much appearance randomisation a source bears: as much as leaves its classes apart."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from garda.data import randomise
from garda.data.dataset import Batch
from garda.data.randomise import RandomisationSettings

FEWEST = 10  # pixels of a class in a slice
HALVINGS = 5  # of the range in which the strength is sought


def contrast(image: Tensor, label: Tensor, classes: int) -> Tensor:
    """How far apart a slice's classes are: distance of their means over the standard deviation inside them.

    >>> label = torch.zeros(1, 8, 8, dtype=torch.long)
    >>> label[:, 4:] = 1
    >>> flat = label[:, None] * 0.5  # without any noise, the deviation counts as 0.01
    >>> contrast(flat, label, classes=2)
    tensor([50.])

    Args:
        image: (B, C, H, W) in [0, 1]; the mean of the channels counts.
        label: (B, H, W) class indices.
        classes: K, the background included.

    Returns:
        (B,) the sum over all pairs of foreground classes of at least ``FEWEST`` pixels; where there is one foreground
        class, it is compared with the background. 0 where there is no such pair.
    """
    members = F.one_hot(label.flatten(1), classes).movedim(2, 0).to(image.dtype)
    value, count = image.mean(dim=1).flatten(1), members.sum(dim=2)
    mean = (members * value).sum(dim=2) / count.clamp_min(1)
    variance = (members * (value - mean[:, :, None]) ** 2).sum(dim=2) / count.clamp_min(1)
    total = torch.zeros(len(image), device=image.device)
    for one, other in combinations(range(0 if classes == 2 else 1, classes), 2):
        spread = ((variance[one] + variance[other]) / 2).clamp_min(1e-4).sqrt()
        seen = torch.minimum(count[one], count[other]) >= FEWEST
        total += seen * (mean[one] - mean[other]).abs() / spread
    return total


def scale_strength(settings: RandomisationSettings, strength: float) -> RandomisationSettings:
    """Bias field, blur, lost resolution and noise at a share of their amplitude; curves stay, they hide little.

    >>> half = scale_strength(RandomisationSettings(), 0.5)
    >>> half.blur, half.coarser, half.inversion
    (0.5, 1.5, 0.4)
    """
    changes = {name: getattr(settings, name) * strength for name in ("bias", "blur", "noise")}
    return settings.model_copy(update=changes | {"coarser": 1 + (settings.coarser - 1) * strength})


def calibrate_strength(settings: RandomisationSettings, batches: Sequence[Batch], classes: int, seed: int) -> float:
    """The largest strength for :func:`scale_strength` that leaves ``settings.contrast`` of the classes' contrast.

    Training on images that no longer show what is asked for teaches to guess from the surroundings. How much hides it
    depends on the task: noise that a cell's nucleus does not mind covers the border of grey and white matter.

    Args:
        settings: the randomisation at full strength.
        batches: labelled slices.
        classes: K, the background included.
        seed: of the random changes, alike for all strengths.

    Returns:
        From 0 to 1, to 1/32; 1 where no slice shows two classes.

    Raises:
        ValueError: a batch has no labels.
    """

    def left(strength: float) -> float:
        weaker, shares = scale_strength(settings, strength), []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for batch in batches:
                if batch.label is None:
                    raise ValueError("contrast needs labels")
                before = contrast(batch.image, batch.label, classes)
                after = contrast(randomise.randomise_appearance(batch.image, weaker), batch.label, classes)
                shares.append((after / before)[before > 0])
        found = torch.cat(shares)
        return float(found.mean()) if len(found) else 1.0

    if left(1.0) >= settings.contrast:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) >= settings.contrast else (low, middle)
    return low
