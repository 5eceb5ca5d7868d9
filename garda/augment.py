"""Random changes of a batch of slices: drawn first, then applied.

Geometry moves image and label together; appearance changes the image alone. All random numbers come from torch's
global generator, which :func:`garda.training.fit` seeds before every step.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from garda.config import Config


class GeometrySettings(Config):
    """How far a slice is moved. Each slice is moved with ``probability``.

    Attributes:
        probability: share of slices that are moved.
        degrees: largest rotation to either side.
        scale: largest relative change of size.
        shift: largest shift as a share of the side.
    """

    probability: float = Field(default=0.8, ge=0, le=1)
    degrees: NonNegativeFloat = 15.0
    scale: NonNegativeFloat = 0.15
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


def draw_motion(count: int, settings: GeometrySettings, any_orientation: bool, device: torch.device) -> Tensor:
    """(B, 2, 3) affine maps from output to input in ``affine_grid``'s [-1, 1] coordinates.

    Args:
        count: B.
        settings: how far.
        any_orientation: also quarter turns and mirror images.
        device: where the maps are needed.
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


def move_image(image: Tensor, motion: Tensor) -> Tensor:
    """(B, C, H, W) moved by (B, 2, 3); differentiable; what comes from outside is reflected."""
    grid = F.affine_grid(motion.to(image.dtype), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def move_label(label: Tensor, motion: Tensor) -> Tensor:
    """(B, H, W) class indices moved as :func:`move_image` moves the image, nearest neighbour."""
    image = label.unsqueeze(1).float()
    grid = F.affine_grid(motion, list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return moved.squeeze(1).long()


def change_appearance(image: Tensor, settings: AppearanceSettings) -> Tensor:
    """(B, C, H, W) in [0, 1] under random gamma, contrast, brightness and noise, one draw a slice; stays in [0, 1]."""
    signed = (torch.rand(3, len(image), 1, 1, 1) * 2 - 1).to(image.device)
    noise = torch.randn(image.shape).to(image.device) * torch.rand(len(image), 1, 1, 1).to(image.device)
    changed = image.clamp_min(1e-6) ** torch.exp(signed[0] * math.log(settings.gamma))
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = mean + (changed - mean) * (1 + signed[1] * settings.contrast) + signed[2] * settings.brightness
    return (changed + noise * settings.noise).clamp(0, 1)
