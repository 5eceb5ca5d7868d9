"""Normalised cross-correlation of templates with slices over all shifts, and how images are turned and cut."""

from __future__ import annotations

import itertools

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

FLAT = 1e-5  # variance below which a window has no pattern: less than a step of an 8-bit image


class Correlation:
    """The largest normalised cross-correlation over all positions at which a template lies within a slice.

    gamma(u) = sum (f - mean_u f) (t - mean t) / sqrt(sum (f - mean_u f)^2 sum (t - mean t)^2) over the window at u
    (Lewis, *Fast normalized cross-correlation*, Vision Interface 1995, equation 2): 1 for a copy, whatever its
    brightness and contrast. Means are of each channel, sums of all channels together. The numerator is taken by FFT.
    """

    def __init__(self, slices: Tensor, size: tuple[int, int]) -> None:
        """What all templates need of the slices.

        Args:
            slices: (B, C, H, W).
            size: (h, w) of the templates, no larger.
        """
        self._size, self._rest = size, [whole - side + 1 for whole, side in zip(slices.shape[-2:], size, strict=True)]
        self._fast = [next_fast_len(side, real=True) for side in slices.shape[-2:]]
        slices = slices - slices.mean(dim=(2, 3), keepdim=True)  # far from 0, sums of squares would lose digits
        self._spectrum = torch.fft.rfft2(slices, s=self._fast)
        self._inverse_norm = _inverse_norm(slices, *size)

    @property
    def numbers(self) -> int:
        """Numbers held for each template."""
        return self._spectrum[:, 0].numel()

    def __call__(self, templates: Tensor) -> Tensor:
        """(T, B) in [-1, 1] for (T, C, h, w); 0 where the template or the window is flat."""
        ours = torch.fft.rfft2(_unit(templates), s=self._fast).conj()
        product = ours[:, None, 0] * self._spectrum[None, :, 0]
        for channel in range(1, templates.shape[1]):
            product += ours[:, None, channel] * self._spectrum[None, :, channel]
        positions = torch.fft.irfft2(product, s=self._fast)[..., : self._rest[0], : self._rest[1]]
        return (positions * self._inverse_norm).amax(dim=(-2, -1)).clamp(-1, 1)


def _unit(templates: Tensor) -> Tensor:
    """Templates of mean 0 in each channel and norm 1; flat ones become 0."""
    centred = templates - templates.mean(dim=(2, 3), keepdim=True)
    energy = centred.square().sum(dim=(1, 2, 3), keepdim=True)
    return torch.where(energy > FLAT * centred[0].numel(), centred * energy.clamp(min=1e-12).rsqrt(), 0.0)


def _inverse_norm(slices: Tensor, height: int, width: int) -> Tensor:
    """(B, H - h + 1, W - w + 1) inverse norms of the windows, their means taken out; 0 for a flat one."""

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.avg_pool2d(values, (height, 1), stride=1), (1, width), stride=1)

    variance = (mean(slices.square()) - mean(slices).square()).sum(dim=1)
    patterned = variance > FLAT * slices.shape[1]
    return torch.where(patterned, (variance.clamp(min=FLAT) * (height * width)).rsqrt(), 0.0)


def turn(images: Tensor, any_orientation: bool) -> list[Tensor]:
    """The images as they are; where any orientation is as likely, also turned by quarters and mirrored, eight in all.

    Args:
        images: (B, C, H, W).
        any_orientation: see :class:`garda.task.Task`.
    """
    if not any_orientation:
        return [images]
    mirrored = (images, images.flip(3))
    return [torch.rot90(image, quarters, dims=(2, 3)) for image, quarters in itertools.product(mirrored, range(4))]


def windows(slices: Tensor, size: tuple[int, int], overlap: int = 1) -> Tensor:
    """Windows that cover every slice.

    Args:
        slices: (B, C, H, W), no smaller than the windows.
        size: (h, w) of a window.
        overlap: each window is shifted by its side divided by this; the last of a row lies at the slice's end.

    Returns:
        (B, n, C, h, w); the slices themselves, with n = 1, where they have the windows' size.
    """
    corners = [
        sorted({*range(0, whole - side, max(side // overlap, 1)), whole - side})
        for whole, side in zip(slices.shape[-2:], size, strict=True)
    ]
    height, width = size
    cut = [slices[..., row : row + height, column : column + width] for row, column in itertools.product(*corners)]
    return torch.stack(cut, dim=1)
