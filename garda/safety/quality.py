"""What can be observed of images and of a network's answers to them without a label: numbers that the gate compares.

Everything about a domain is a median over its slices, so that a few odd slices decide nothing.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional as F

from garda.data import augment
from garda.data.augment import ImitatedGeometrySettings
from garda.data.task import Task
from garda.models.factorised import FactorisedGenerator
from garda.models.generator import Generator
from garda.safety.limits import Views
from garda.training.device import Compute

GREYS = 256  # levels by which images are told from label maps
FEWEST = 20  # pixels beside the commonest grey, for a slice that is not blank
FLAT = 0.02  # standard deviation, in [0, 1], of a slice that counts as blank
MOTIONS = 3  # under which answers are compared
PART = 16  # slices computed at once


@torch.no_grad()
def view(network: nn.Module, generator: Generator | None, image: Tensor, task: Task, compute: Compute) -> Views:
    """Look at images with a network, and with a generator where it can read them.

    Args:
        network: in evaluation mode.
        generator: in evaluation mode; one that reads no anatomy gives no ``agreed``.
        image: (B, C, H, W) in [0, 1].
        task: whether images of any orientation are alike.
        compute: device and precision.
    """
    own = answer(network, image, compute)
    entropy = -(own * own.clamp_min(1e-8).log()).sum(dim=1).mean(dim=(1, 2)) / math.log(own.shape[1])
    settings = ImitatedGeometrySettings(probability=1)
    steady = []
    for _ in range(MOTIONS):
        motion = augment.draw_affine(len(image), settings, task.any_orientation, image.device)
        moved = answer(network, augment.warp(image, motion), compute)
        steady.append(dice_by_slice(moved, augment.warp(own, motion)))
    read = read_anatomy(generator, image, compute)
    return Views(
        steady=_median(torch.cat(steady)),
        certain=1 - _median(entropy),
        agreed=None if read is None else _median(dice_by_slice(read, own)),
    )


@torch.no_grad()
def answer(network: Callable[[Tensor], Tensor], image: Tensor, compute: Compute) -> Tensor:
    """(B, K, H, W) float32 probabilities in [0, 1] on the CPU, of (B, C, H, W) images in [0, 1].

    Args:
        network: (b, C, H, W) on the device to (b, K, H, W) logits.
        image: the images.
        compute: device and precision.
    """
    with compute.autocast():
        parts = [torch.softmax(network(compute.to_device(part)).float(), dim=1).cpu() for part in image.split(PART)]
    return torch.cat(parts)


@torch.no_grad()
def read_anatomy(generator: Generator | None, image: Tensor, compute: Compute) -> Tensor | None:
    """(B, K, H, W) probabilities of the labels that a generator reads from images; None where it reads none."""
    if not isinstance(generator, FactorisedGenerator):
        return None
    anatomy, decoder = generator.anatomy, generator.decoder
    return answer(lambda part: decoder(anatomy(part))[1], image, compute)


def dice_by_slice(ours: Tensor, theirs: Tensor) -> Tensor:
    """(B,) soft Dice of (B, K, H, W) probabilities, all foreground classes counted together; 1 where both are empty.

    >>> upper = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    >>> ours = torch.cat([1 - upper, upper], dim=1)
    >>> dice_by_slice(ours, ours).tolist()
    [1.0]
    >>> dice_by_slice(ours, ours.flip(2)).tolist()  # nothing in common; 1 is added above and below
    [0.20000000298023224]
    """
    ours, theirs = ours[:, 1:].flatten(1), theirs[:, 1:].flatten(1)
    return (2 * (ours * theirs).sum(dim=1) + 1) / (ours.sum(dim=1) + theirs.sum(dim=1) + 1)


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Dice of two networks' decisions over all slices, the mean over foreground classes; 1 for a class in neither.

    Args:
        ours: (B, K, H, W) probabilities.
        theirs: the same.

    >>> own = torch.eye(3)[[0, 1, 2, 2]].T.reshape(1, 3, 2, 2)
    >>> agreement(own, own)
    1.0
    """
    classes = ours.shape[1]
    one, other = (F.one_hot(p.argmax(dim=1).flatten(), classes)[:, 1:].float() for p in (ours, theirs))
    return float(((2 * (one * other).sum(dim=0) + 1) / (one.sum(dim=0) + other.sum(dim=0) + 1)).mean())


def foreground(own: Tensor) -> float:
    """Share of foreground, in [0, 1], in the decisions of (B, K, H, W) probabilities."""
    return float((own.argmax(dim=1) > 0).float().mean())


def blank(image: Tensor) -> Tensor:
    """(B,) whether a slice of (B, C, H, W) shows nothing: one grey but for a few pixels, or hardly any contrast."""
    return (_grey_counts(image)[:, 1:].sum(dim=1) < FEWEST) | (image.std(dim=(1, 2, 3)) < FLAT)


def few_greys(image: Tensor, classes: int) -> float:
    """How much of an image is painted in as few greys as there are classes, in [0, 1]; 1 for a label map.

    Of the pixels beside the commonest grey (an empty margin tells nothing) the share that has one of the
    ``classes`` - 1 commonest others. Blank slices are left out; 0 where there is no other.

    Args:
        image: (B, C, H, W) in [0, 1]; the mean of the channels counts.
        classes: K, the background included.
    """
    counts = _grey_counts(image)[~blank(image)]
    return _median(counts[:, 1:classes].sum(dim=1) / counts[:, 1:].sum(dim=1)) if len(counts) else 0.0


def roughness(image: Tensor) -> float:
    """1 - correlation of neighbouring rows' pixels of (B, C, H, W): 1 for white noise, near 0 for smooth images.

    Blank slices are left out; 0 where there is no other.
    """
    seen = image[~blank(image)]
    if not len(seen):
        return 0.0
    variance = seen.var(dim=(2, 3)).mean(dim=1).clamp_min(1e-8)
    return _median((seen.diff(dim=2) ** 2).mean(dim=(1, 2, 3)) / (2 * variance))


def diversity(image: Tensor) -> float:
    """1 - mean correlation of (B, C, H, W) images with one another: 0 where all are one, whatever their contrast."""
    centred = image - image.mean(dim=(2, 3), keepdim=True)  # each channel, or a common colour would count as likeness
    unit = F.normalize(centred.flatten(1), dim=1, eps=1e-3)
    count = len(image)
    return 1 - float(((unit @ unit.T).sum() - (unit**2).sum()) / (count * (count - 1)))


def grey_distance(ours: Tensor, theirs: Tensor) -> float:
    """How far the greys of (B, C, H, W) images lie from those of others, the mean over channels, in [0, 1].

    Wasserstein's distance: how far a pixel's grey must move on average for the one distribution to be the other.
    """
    pairs = zip(ours.movedim(1, 0).flatten(1), theirs.movedim(1, 0).flatten(1), strict=True)
    return float(np.mean([wasserstein_distance(one.numpy(), other.numpy()) for one, other in pairs]))


def _grey_counts(image: Tensor) -> Tensor:
    """(B, GREYS) pixels of each grey, the commonest first."""
    grey = (image.mean(dim=1) * (GREYS - 1)).round().long().flatten(1)
    counts = torch.zeros(len(image), GREYS).scatter_add_(1, grey, torch.ones(grey.shape))
    return counts.sort(dim=1, descending=True).values


def _median(values: Tensor) -> float:
    return float(values.double().quantile(0.5))
