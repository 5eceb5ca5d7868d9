"""Appearance randomisation: slices as scanners that do not exist might show them.

A batch is a mixture of kinds: slices as they are, slices through random curves, and slices whose regions have got
contrasts of their own. Curves keep the order of intensities, up to a sign: what was brighter than another stays apart
from it. Regions do not, and so also stand for scanners that show two tissues the other way round. All random numbers
come from torch's global generator.
"""

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from garda.core.config import Config


class RandomisationSettings(Config):
    """How far intensities are randomised, so that a network learns shapes and not one scanner's contrast.

    Random curves, colours, bias field, blur, lost resolution and noise; the idea is that of appearance randomisation
    for single-source domain generalisation (Ouyang et al., IEEE TMI 2023, arXiv 2111.12525, section III-B), with random
    curves in place of random networks: they need no forward pass and keep edges where they are. Regions with contrasts
    of their own: see :func:`recontrast`.

    Attributes:
        probability: share of slices that go through curves.
        regions: share of further slices whose regions get contrasts of their own, half of which go through curves too.
        parts: regions into which the background is cut.
        knots: number of straight pieces of a curve.
        inversion: share of the randomised slices whose curve falls.
        colour: share of the randomised slices of several channels whose channels get curves of their own.
        span: smallest distance between a curve's lowest and highest value.
        bias: standard deviation of the logarithm of the bias field at its 4x4 knots.
        blur: largest standard deviation of the Gaussian blur, pixels.
        coarser: largest factor by which the resolution is lowered.
        noise: largest standard deviation of Gaussian noise.
        contrast: share of the contrast between the source's classes that is left on average. Where bias field, blur,
            lost resolution and noise leave less, they are weakened until it is (:mod:`garda.data.calibrate`); 0 for
            never.
    """

    probability: float = Field(default=1 / 3, ge=0, le=1)
    regions: float = Field(default=1 / 3, ge=0, le=1)
    parts: PositiveInt = 3
    knots: int = Field(default=5, ge=1)
    inversion: float = Field(default=0.4, ge=0, le=1)
    colour: float = Field(default=0.5, ge=0, le=1)
    span: float = Field(default=0.3, gt=0, le=1)
    bias: NonNegativeFloat = 0.25
    blur: NonNegativeFloat = 1.0
    coarser: float = Field(default=2.0, ge=1)
    noise: NonNegativeFloat = 0.06
    contrast: float = Field(default=0.6, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_of_a_whole(self) -> "RandomisationSettings":
        if self.probability + self.regions > 1:
            raise ValueError("probability and regions together must be at most 1")
        return self


def randomise(image: Tensor, label: Tensor, settings: RandomisationSettings) -> Tensor:
    """A mixture of slices as they are, under other curves, and with regions of other contrasts; one draw a slice.

    >>> image, label = torch.rand(4, 1, 16, 16), torch.full((4, 2, 16, 16), 0.5)
    >>> changed = randomise(image, label, RandomisationSettings())
    >>> changed.shape == image.shape, 0 <= changed.min() <= changed.max() <= 1
    (True, tensor(True))
    >>> torch.equal(randomise(image, label, RandomisationSettings(probability=0.0, regions=0.0)), image)
    True

    Args:
        image: (B, C, H, W) in [0, 1].
        label: (B, K, H, W) class probabilities, the background first.
        settings: how far, and how many of the slices.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    place = torch.rand(len(image), 1, 1, 1).to(image.device)
    twice = (torch.rand(len(image), 1, 1, 1) < 0.5).to(image.device)
    regional = place < settings.regions
    curved = torch.where(regional, twice, place < settings.regions + settings.probability)
    if settings.regions:
        image = torch.where(regional, recontrast(image, label, settings.parts), image)
    return torch.where(curved, randomise_appearance(image, settings), image)


def recontrast(image: Tensor, label: Tensor, parts: int) -> Tensor:
    """Slices whose regions have means and contrasts of their own, with soft borders.

    Regions are the foreground classes, and parts of the background that are cut at random quantiles of the slice's
    intensities. A region's intensities x become m + a (x - mean), with m uniform in [0, 1], |a| uniform in [0.3, 1.5],
    negative in 3 of 10 cases. The idea is that of location-scale augmentation by class (Su et al., AAAI 2023, SLAug,
    section 3.1); labels alone, without the image, would be Billot et al. (Medical Image Analysis 86, 102789, 2023).

    Args:
        image: (B, C, H, W) in [0, 1]; the mean of the channels tells the background's parts.
        label: (B, K, H, W) class probabilities, the background first.
        parts: of the background.

    Returns:
        (B, C, H, W) in [0, 1].

    >>> image = torch.rand(2, 1, 8, 8)
    >>> recontrast(image, torch.ones(2, 1, 8, 8), parts=1).shape
    torch.Size([2, 1, 8, 8])
    """
    count, device = len(image), image.device
    grey = image.mean(dim=1)
    levels = grey.flatten(1).sort(dim=1).values
    cuts = torch.rand(count, parts - 1).sort(dim=1).values.to(device) * (levels.shape[1] - 1)
    part = (grey[:, None] > levels.gather(1, cuts.long())[:, :, None, None]).sum(dim=1)
    behind = F.one_hot(part, parts).movedim(3, 1) * label[:, :1]
    regions = _blur(torch.cat([behind, label[:, 1:]], dim=1), 0.3 + 0.7 * torch.rand(count))
    mean = (regions * grey[:, None]).sum(dim=(2, 3)) / regions.sum(dim=(2, 3)).clamp_min(1)
    level, drawn, sign = torch.rand(3, *mean.shape).to(device)
    slope = (0.3 + 1.2 * drawn) * torch.where(sign < 0.3, -1.0, 1.0)
    slopes, offsets = (
        (regions * each[:, :, None, None]).sum(dim=1, keepdim=True) for each in (slope, level - slope * mean)
    )
    return (slopes * image + offsets).clamp(0, 1)


def randomise_appearance(image: Tensor, settings: RandomisationSettings) -> Tensor:
    """Every slice through curves, bias field, blur, lost resolution and noise, one draw a slice.

    MONAI has most of these steps as transforms of one image; here a whole batch takes one pass on its device.

    >>> image = torch.rand(4, 1, 16, 16)
    >>> changed = randomise_appearance(image, RandomisationSettings())
    >>> changed.shape == image.shape, 0 <= changed.min() <= changed.max() <= 1
    (True, tensor(True))

    Args:
        image: (B, C, H, W) in [0, 1].
        settings: how far.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    count, device = len(image), image.device
    changed = apply_curves(image, draw_curves(count, image.shape[1], settings).to(device))
    changed = changed * torch.exp(_field(image, settings.bias))
    changed = _blur(changed, torch.rand(count) * settings.blur)
    changed = _coarsen(changed, 1 + torch.rand(count) * (settings.coarser - 1))
    noise = torch.randn(image.shape).to(device) * (torch.rand(count, 1, 1, 1) * settings.noise).to(device)
    return (changed + noise).clamp(0, 1)


def draw_curves(count: int, channels: int, settings: RandomisationSettings) -> Tensor:
    """Random monotone curves, rising or falling.

    >>> draw_curves(count=2, channels=3, settings=RandomisationSettings(knots=5)).shape
    torch.Size([2, 3, 6])

    Args:
        count: B.
        channels: C; they share a curve in slices that are not coloured.
        settings: knots, span, and the shares of falling and of coloured curves.

    Returns:
        (B, C, knots + 1) values in [0, 1] at equal steps from 0 to 1.
    """
    steps = torch.rand(count, channels, settings.knots) ** 2 + 1e-3
    rising = torch.cat([torch.zeros(count, channels, 1), steps.cumsum(dim=2)], dim=2)
    rising = rising / rising[:, :, -1:]
    falls = torch.rand(count, channels, 1) < settings.inversion
    span = settings.span + torch.rand(count, channels, 1) * (1 - settings.span)
    low = torch.rand(count, channels, 1) * (1 - span)
    curves = low + span * torch.where(falls, 1 - rising, rising)
    coloured = torch.rand(count, 1, 1) < settings.colour
    return torch.where(coloured, curves, curves[:, :1])


def apply_curves(image: Tensor, curves: Tensor) -> Tensor:
    """Intensities through curves, straight between their knots.

    >>> image = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3)
    >>> apply_curves(image, curves=torch.tensor([[[1.0, 0.5, 0.0]]])).flatten()
    tensor([1.0000, 0.7500, 0.0000])

    Args:
        image: (B, C, H, W) in [0, 1].
        curves: (B, C, N + 1) values at equal steps from 0 to 1.

    Returns:
        (B, C, H, W), in the range of the curves.
    """
    pieces = curves.shape[2] - 1
    position = image.flatten(2) * pieces
    left = position.floor().clamp(0, pieces - 1)
    below, above = (curves.gather(2, left.long() + i) for i in (0, 1))
    return (below + (above - below) * (position - left)).view_as(image)


def _field(image: Tensor, strength: float) -> Tensor:
    """(B, 1, H, W) smooth random field, standard deviation ``strength`` at 4x4 knots."""
    knots = torch.randn(len(image), 1, 4, 4).to(image.device) * strength
    return F.interpolate(knots, size=image.shape[-2:], mode="bicubic", align_corners=True)


def _blur(image: Tensor, deviation: Tensor) -> Tensor:
    """(B, C, H, W) under Gaussian blur of (B,) standard deviations, pixels."""
    reach, groups = 3, image.shape[0] * image.shape[1]
    distance = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.softmax(-(distance**2) / (2 * deviation.clamp_min(0.05)[:, None] ** 2), dim=1).to(image.device)
    kernel = kernel.repeat_interleave(image.shape[1], dim=0)[:, None, None]
    padded = F.pad(image, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    across = F.conv2d(padded, kernel, groups=groups)
    return F.conv2d(across, kernel.transpose(2, 3), groups=groups).view(image.shape)


def _coarsen(image: Tensor, factor: Tensor) -> Tensor:
    """(B, C, H, W) at one lower resolution and back, mixed in as far as each slice's (B,) factor asks."""
    lowest = float(factor.max())
    if lowest <= 1:
        return image
    size = [max(1, round(side / lowest)) for side in image.shape[-2:]]
    low = F.interpolate(image, size=size, mode="bilinear", antialias=True)
    back = F.interpolate(low, size=image.shape[-2:], mode="bilinear")
    share = ((factor - 1) / (lowest - 1)).to(image.device)[:, None, None, None]
    return image + (back - image) * share
