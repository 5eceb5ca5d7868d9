"""Random changes of a batch of slices: drawn first, then applied.

Geometry moves image and label together; appearance changes the image alone. All random numbers come from torch's
global generator, which :func:`garda.training.loop.fit` seeds before every step.
"""

import math

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from garda.core.config import Config


class GeometrySettings(Config):
    """How far a slice is moved. Each slice is moved with ``probability``.

    Sites do not centre what they scan alike, so a segmenter must not learn where things lie.

    Attributes:
        probability: share of slices that are moved.
        degrees: largest rotation to either side.
        scale: largest relative change of size.
        shift: largest shift as a share of the side.
    """

    probability: float = Field(default=0.8, ge=0, le=1)
    degrees: NonNegativeFloat = 15.0
    scale: NonNegativeFloat = 0.15
    shift: NonNegativeFloat = 0.25


class ImitatedGeometrySettings(GeometrySettings):
    """How far slices are moved that a generator learns from: it has no use for places where nothing ever lies.

    Attributes:
        shift: largest shift as a share of the side.
    """

    shift: NonNegativeFloat = 0.08


class AppearanceSettings(Config):
    """How far intensities are changed ("plain" augmentation).

    Attributes:
        gamma: intensities become x**g, log g uniform in +-log(gamma).
        contrast: largest relative change of contrast around the slice's mean.
        brightness: largest shift of intensity.
        noise: largest standard deviation of Gaussian noise.
    """

    gamma: float = Field(default=1.4, ge=1)
    contrast: NonNegativeFloat = 0.15
    brightness: NonNegativeFloat = 0.08
    noise: NonNegativeFloat = 0.03


def draw_affine(count: int, settings: GeometrySettings, any_orientation: bool, device: torch.device) -> Tensor:
    """Random motions: rotation, change of size and shift, each uniform within its limits.

    >>> still = GeometrySettings(probability=0.0)
    >>> motion = draw_affine(5, still, any_orientation=False, device=torch.device("cpu"))
    >>> torch.equal(motion, torch.eye(2, 3).expand(5, -1, -1))
    True

    Args:
        count: B.
        settings: how far.
        any_orientation: also quarter turns and mirror images.
        device: where the maps are needed.

    Returns:
        (B, 2, 3) float32 affine maps from output to input in ``affine_grid``'s [-1, 1] coordinates.
    """
    signed = torch.rand(4, count) * 2 - 1
    moved = (torch.rand(count) < settings.probability).float()
    angle = signed[0] * moved * math.radians(settings.degrees)
    scale = torch.exp(signed[1] * moved * math.log1p(settings.scale))
    mirror = torch.ones(count)
    if any_orientation:
        angle = angle + torch.randint(4, (count,)) * (math.pi / 2)
        mirror = torch.randint(2, (count,)) * 2.0 - 1
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = signed[2:] * moved * settings.shift * 2
    rows = torch.stack([cos * mirror, -sin, shift[0], sin * mirror, cos, shift[1]], dim=1)
    return rows.view(count, 2, 3).to(device)


def warp(image: Tensor, motion: Tensor, mode: str = "bilinear") -> Tensor:
    """Move slices; differentiable in image and motion; what comes from outside is reflected.

    >>> image = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 2, 2)
    >>> mirror = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    >>> warp(image, mirror)[0, 0]
    tensor([[1., 0.],
            [3., 2.]])

    Args:
        image: (B, C, H, W) float.
        motion: (B, 2, 3) maps of :func:`draw_affine`.
        mode: ``bilinear``, or ``nearest`` where values must not mix.

    Returns:
        (B, C, H, W).
    """
    grid = F.affine_grid(motion.to(image.dtype), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode=mode, padding_mode="reflection", align_corners=False)


def warp_label(label: Tensor, motion: Tensor) -> Tensor:
    """(B, H, W) int64 class indices moved as :func:`warp` moves the image, nearest neighbour."""
    return warp(label.unsqueeze(1).float(), motion, mode="nearest").squeeze(1).long()


def change_appearance(image: Tensor, settings: AppearanceSettings) -> Tensor:
    """Random gamma, contrast, brightness and noise, one draw a slice.

    >>> nothing = AppearanceSettings(gamma=1.0, contrast=0.0, brightness=0.0, noise=0.0)
    >>> change_appearance(torch.full((1, 1, 1, 2), 0.5), nothing)
    tensor([[[[0.5000, 0.5000]]]])

    Args:
        image: (B, C, H, W) in [0, 1].
        settings: how far.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    signed = (torch.rand(3, len(image), 1, 1, 1) * 2 - 1).to(image.device)
    noise = torch.randn(image.shape).to(image.device) * torch.rand(len(image), 1, 1, 1).to(image.device)
    changed = image.clamp_min(1e-6) ** torch.exp(signed[0] * math.log(settings.gamma))
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = mean + (changed - mean) * (1 + signed[1] * settings.contrast) + signed[2] * settings.brightness
    return (changed + noise * settings.noise).clamp(0, 1)


class RandomisationSettings(Config):
    """How far intensities are randomised, so that a network learns shapes and not one scanner's contrast.

    Random curves, colours, bias field, blur, lost resolution and noise; the idea is that of appearance randomisation
    for single-source domain generalisation (Ouyang et al., IEEE TMI 2023, arXiv 2111.12525, section III-B), with random
    curves in place of random networks: they need no forward pass and keep edges where they are.

    Attributes:
        probability: share of slices that are randomised; the others stay as they are.
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

    probability: float = Field(default=0.8, ge=0, le=1)
    knots: int = Field(default=5, ge=1)
    inversion: float = Field(default=0.4, ge=0, le=1)
    colour: float = Field(default=0.5, ge=0, le=1)
    span: float = Field(default=0.3, gt=0, le=1)
    bias: NonNegativeFloat = 0.25
    blur: NonNegativeFloat = 1.0
    coarser: float = Field(default=2.0, ge=1)
    noise: NonNegativeFloat = 0.06
    contrast: float = Field(default=0.6, ge=0, le=1)


def randomise_appearance(image: Tensor, settings: RandomisationSettings) -> Tensor:
    """Slices as scanners that do not exist might show them, one draw a slice.

    MONAI has most of these steps as transforms of one image; here a whole batch takes one pass on its device.

    >>> image = torch.rand(4, 1, 16, 16)
    >>> changed = randomise_appearance(image, RandomisationSettings())
    >>> changed.shape == image.shape, 0 <= changed.min() <= changed.max() <= 1
    (True, tensor(True))
    >>> torch.equal(randomise_appearance(image, RandomisationSettings(probability=0.0)), image)
    True

    Args:
        image: (B, C, H, W) in [0, 1].
        settings: how far, and how many of the slices.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    count, device = len(image), image.device
    changed = apply_curves(image, draw_curves(count, image.shape[1], settings).to(device))
    changed = changed * torch.exp(_field(image, settings.bias))
    changed = _blur(changed, torch.rand(count) * settings.blur)
    changed = _coarsen(changed, 1 + torch.rand(count) * (settings.coarser - 1))
    noise = torch.randn(image.shape).to(device) * (torch.rand(count, 1, 1, 1) * settings.noise).to(device)
    chosen = (torch.rand(count, 1, 1, 1) < settings.probability).to(device)
    return torch.where(chosen, (changed + noise).clamp(0, 1), image)


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
