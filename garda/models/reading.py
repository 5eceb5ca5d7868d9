"""Which of several networks reads a domain best, without a label: the one that says the same of every view of it.

Slices are turned, scaled and shifted at random, segmented, and the answers turned back; a network that knows what it
sees gives the answer that it gives to the slice as it is. Every other view is shifted by whole pixels and mirrored
alone, since interpolation spoils thin structures. An answer that is nonsense everywhere agrees with itself, so
implausible ones go first: those whose classes take a share of the image that the source's labels never do.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.config import Config
from garda.data import augment
from garda.data.augment import GeometrySettings
from garda.data.task import Task
from garda.models.ensemble import resize
from garda.training.device import Compute

PART = 16  # slices computed at once
MOST = 0.9  # share of the image that no class exceeds
VIEWS = GeometrySettings(probability=1.0, degrees=12.0, shift=0.04)  # turned by quarters and mirrored where task allows
SHIFTS = GeometrySettings(probability=1.0, degrees=0.0, scale=0.0, shift=0.08)  # these too; by whole pixels


class ChoiceSettings(Config):
    """How a domain's reading is chosen.

    Attributes:
        slices: that are looked at.
        views: of each.
        several: by how much several networks' mean must agree better than each alone.
        zooms: factors by which images are enlarged where files have no spacing.
        zoomed: by how much an enlarged image must be agreed on better.
        fewer: factor by which a class's share of the image may lie below the source's.
        more: by which it may lie above.
        contradicted: share of the source's consensus of the networks below which a domain is read as one not met.
    """

    slices: PositiveInt = 64
    views: PositiveInt = 4
    several: NonNegativeFloat = 0.012
    zooms: tuple[PositiveFloat, ...] = (0.5, 0.7, 1.4, 2.0)
    zoomed: NonNegativeFloat = 0.008
    fewer: float = Field(default=20.0, ge=1)
    more: float = Field(default=4.0, ge=1)
    contradicted: float = Field(default=0.6, ge=0, le=1)


@dataclass(frozen=True)
class Reading:
    """A way to read a domain, and what speaks for it.

    Attributes:
        experts: names of networks whose probabilities are averaged.
        zoom: factor by which images are enlarged.
        agreement: over views, in [0, 1].
        plausible: whether each class takes a share of the image that it may.
        lesson: whether the network has learnt the domain.
    """

    experts: tuple[str, ...]
    zoom: float
    agreement: float
    plausible: bool
    lesson: bool = False

    @property
    def name(self) -> str:
        """Such as ``plain+curves`` or ``plain, zoom 2``."""
        more = ", taught" * self.lesson + (f", zoom {self.zoom:g}" if self.zoom != 1 else "")
        return "+".join(self.experts) + more


@dataclass(frozen=True)
class Candidate:
    """What could have been kept of a target.

    Attributes:
        name: of the reading.
        own: the domain's state.
        scores: label-free numbers by name.
        chosen: whether it is what was kept.
    """

    name: str
    own: Mapping[str, Tensor]
    scores: Mapping[str, float]
    chosen: bool


def plausible_shares(label: Tensor, classes: int) -> Tensor:
    """The smallest and largest share of the image that each foreground class takes in the source.

    >>> label = torch.zeros(2, 4, 4, dtype=torch.long)
    >>> label[0, :2], label[1, 0, 0] = 1, 1
    >>> plausible_shares(label, classes=2)
    tensor([[0.0625, 0.5000]])

    Args:
        label: (B, H, W) class indices.
        classes: K, the background included.

    Returns:
        (K - 1, 2): the mean over slices where the share is below the median of all slices with the class, and where it
        is above.
    """
    shares = F.one_hot(label, classes).float().mean(dim=(1, 2))[:, 1:]
    found = []
    for share in shares.T:
        some = share[share > 0].sort().values if bool((share > 0).any()) else torch.zeros(1)
        half = max(1, len(some) // 2)
        found.append(torch.stack([some[:half].mean(), some[-half:].mean()]))
    return torch.stack(found)


@torch.no_grad()
def compare(
    experts: Mapping[str, nn.Module],
    images: Tensor,
    zoom: float,
    shares: Tensor | None,
    settings: ChoiceSettings,
    task: Task,
    compute: Compute,
) -> list[Reading]:
    """Every expert, and the mean of all, at one zoom; views are drawn from torch's global generator.

    Args:
        experts: in evaluation mode, by name.
        images: (B, C, H, W) in [0, 1], sides of any length.
        zoom: factor by which they are enlarged.
        shares: of :func:`plausible_shares`; None lets everything pass.
        settings: views and bounds.
        task: whether images of any orientation are alike.
        compute: device and precision.
    """
    groups = _group(experts)
    common = torch.zeros(settings.views, len(groups), len(task.classes))
    total, seen, pixels = torch.zeros_like(common), torch.zeros(len(groups), len(task.classes)), 0
    for image in images.split(PART):
        shown = resize(image, zoom)
        own = _ask(experts, shown, groups, compute)
        seen += own.sum(dim=(1, 3, 4))
        pixels += shown[:, 0].numel()
        for view in range(settings.views):
            motion = draw_view(view, shown, task.any_orientation)
            back = invert(motion)
            moved = _ask(experts, augment.warp(shown, motion), groups, compute, back)
            grid = F.affine_grid(back, list(shown.shape), align_corners=False)
            inside = (grid.abs() <= 1).all(dim=3)[None, :, None].float()
            common[view] += (own * moved * inside).sum(dim=(1, 3, 4))
            total[view] += ((own + moved) * inside).sum(dim=(1, 3, 4))
    dice = (2 * common / total.clamp_min(1))[:, :, 1:].mean(dim=(0, 2))
    fits = (
        torch.ones(len(groups), dtype=torch.bool) if shares is None else _fits(seen[:, 1:] / pixels, shares, settings)
    )
    return [
        Reading(group, zoom, float(agreed), bool(fit)) for group, agreed, fit in zip(groups, dice, fits, strict=True)
    ]


@torch.no_grad()
def consensus(experts: Mapping[str, nn.Module], images: Tensor, compute: Compute) -> float:
    """Dice, the mean over foreground classes, between those two networks that say most alike; 1 for fewer than two.

    Args:
        experts: in evaluation mode, by name.
        images: (B, C, H, W) in [0, 1].
        compute: device and precision.
    """
    groups = [(name,) for name in experts]
    if len(groups) < 2:
        return 1.0
    parts = [_ask(experts, part, groups, compute) for part in (resize(each, 1.0) for each in images.split(PART))]
    answers = torch.cat(parts, dim=1).movedim(2, 1).flatten(2)
    dice = [
        float((2 * (one * other).sum(dim=1) / (one + other).sum(dim=1).clamp_min(1))[1:].mean())
        for one, other in itertools.combinations(answers, 2)
    ]
    return max(dice)


@torch.no_grad()
def score(experts: Mapping[str, nn.Module], image: Tensor, label: Tensor, compute: Compute) -> list[Reading]:
    """Every expert, and the mean of all, by labels: Dice stands in place of agreement.

    Args:
        experts: in evaluation mode, by name.
        image: (B, C, H, W) in [0, 1].
        label: (B, K, H, W) one-hot.
        compute: device and precision.
    """
    groups = _group(experts)
    parts = [_ask(experts, part, groups, compute) for part in image.split(PART)]
    found = torch.cat(parts, dim=1)
    common, total = ((each).sum(dim=(1, 3, 4)) for each in (found * label, found + label))
    dice = (2 * common / total.clamp_min(1))[:, 1:].mean(dim=1)
    return [Reading(group, 1.0, float(each), True) for group, each in zip(groups, dice, strict=True)]


def _fits(found: Tensor, shares: Tensor, settings: ChoiceSettings) -> Tensor:
    """Whether the (groups, K - 1) shares of the foreground classes are such as the source's labels may show."""
    low, high = shares[:, 0] / settings.fewer, shares[:, 1] * settings.more
    return ((found >= low) & (found <= high.clamp_max(MOST))).all(dim=1)


def _group(experts: Mapping[str, nn.Module]) -> list[tuple[str, ...]]:
    """Each expert, then all of them together."""
    names = list(experts)
    return [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])


def choose(readings: Sequence[Reading], settings: ChoiceSettings) -> Reading:
    """The reading that agrees most with itself, of those that are plausible if there is one.

    Several networks' mean agrees a little more by being a mean, and a zoomed image by being smoother: both must win by
    a margin.

    >>> one, other = Reading(("plain",), 1.0, 0.90, True), Reading(("curves",), 1.0, 0.92, True)
    >>> mean, wrong = Reading(("plain", "curves"), 1.0, 0.93, True), Reading(("mixture",), 1.0, 0.99, False)
    >>> choose([one, other, mean, wrong], ChoiceSettings()).name
    'curves'
    """
    left = [reading for reading in readings if reading.plausible] or list(readings)

    def worth(reading: Reading) -> float:
        handicap = settings.several * (len(reading.experts) > 1) + settings.zoomed * (reading.zoom != 1)
        return reading.agreement - handicap

    return max(left, key=worth)


def _ask(
    experts: Mapping[str, nn.Module],
    image: Tensor,
    groups: Sequence[tuple[str, ...]],
    compute: Compute,
    back: Tensor | None = None,
) -> Tensor:
    """(groups, B, K, H, W) decisions of each group of networks, one-hot; moved by ``back`` before they are taken."""
    answers = {}
    for name, network in experts.items():
        with compute.autocast():
            answer = torch.softmax(network(compute.to_device(image)).float(), dim=1).cpu()
        answers[name] = answer if back is None else augment.warp(answer, back)
    decided = [torch.stack([answers[name] for name in group]).mean(dim=0).argmax(dim=1) for group in groups]
    classes = next(iter(answers.values())).shape[1]
    return torch.stack([F.one_hot(each, classes).movedim(3, 1).float() for each in decided])


def draw_view(number: int, image: Tensor, any_orientation: bool) -> Tensor:
    """(B, 2, 3) motions of (B, C, H, W) slices, as of :func:`garda.data.augment.draw_affine`.

    Args:
        number: of the view; every second moves by whole pixels alone.
        image: gives B, H, W and the device.
        any_orientation: also quarter turns and mirror images.
    """
    settings = SHIFTS if number % 2 else VIEWS
    motion = augment.draw_affine(len(image), settings, any_orientation, image.device)
    if number % 2:
        half = torch.tensor([image.shape[-1] / 2, image.shape[-2] / 2], device=image.device)
        motion[:, :, 2] = (motion[:, :, 2] * half).round() / half
    return motion


def invert(motion: Tensor) -> Tensor:
    """(B, 2, 3) maps that take back those of :func:`garda.data.augment.draw_affine`."""
    whole = torch.eye(3).repeat(len(motion), 1, 1).to(motion)
    whole[:, :2] = motion
    return torch.linalg.inv(whole)[:, :2]
