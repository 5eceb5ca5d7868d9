"""Random changes of a batch of slices: drawn first, then applied.

Geometry moves image and label together; appearance changes the image alone, a little here and a lot in
:mod:`garda.data.randomise`. All random numbers come from torch's global generator, which
:func:`garda.training.loop.fit` seeds before every step.
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
