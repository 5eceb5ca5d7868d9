"""Normalised cross-correlation of templates with slices over all shifts, and how images are turned and cut."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.errors import ConfigError
from garda.data.task import Task
from garda.safety.audit_report import Attack, AuditSettings, SpaceName
from garda.safety.patients import Patients, in_groups
from garda.training.device import Compute

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
        self._rest = [whole - side + 1 for whole, side in zip(slices.shape[-2:], size, strict=True)]
        self._fast = [next_fast_len(side, real=True) for side in slices.shape[-2:]]
        slices = slices - slices.mean(dim=(2, 3), keepdim=True)  # far from 0, sums of squares would lose digits
        self._spectrum = torch.fft.rfft2(slices, s=self._fast)
        self._inverse_norm = _inverse_norm(slices, *size)
        self.numbers = self._spectrum[:, 0].numel()  # held for each template

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
        any_orientation: see :class:`garda.data.task.Task`.

    >>> len(turn(torch.rand(1, 1, 4, 4), any_orientation=True))
    8
    """
    if not any_orientation:
        return [images]
    return [torch.rot90(image, turns, dims=(2, 3)) for image in (images, images.flip(3)) for turns in range(4)]


def windows(slices: Tensor, size: tuple[int, int], overlap: int = 1) -> Tensor:
    """Windows that cover every slice.

    Args:
        slices: (B, C, H, W), no smaller than the windows.
        size: (h, w) of a window.
        overlap: each window is shifted by its side divided by this; the last of a row lies at the slice's end.

    Returns:
        (B, n, C, h, w); the slices themselves, with n = 1, where they have the windows' size.

    >>> windows(torch.rand(3, 1, 10, 7), (4, 4)).shape
    torch.Size([3, 6, 1, 4, 4])
    """
    corners = [
        sorted({*range(0, whole - side, max(side // overlap, 1)), whole - side})
        for whole, side in zip(slices.shape[-2:], size, strict=True)
    ]
    height, width = size
    cut = [slices[..., row : row + height, column : column + width] for row, column in itertools.product(*corners)]
    return torch.stack(cut, dim=1)


GRID = 4  # cells along each side of an image, over each of which features are averaged
BATCH = 16  # images that an encoder is given at once

Embedding = Callable[[Tensor], Tensor] | nn.Module  # (B, C, h, w) images to (B, F) or (B, F, h, w) features
Similarity = Callable[[Tensor], Tensor]  # (B, C, H, W) slices to their (n, B) nearness to n probes


class Space(ABC):
    """Says how near slices are to probes; more is nearer, 1 is a copy.

    Attributes:
        name: what its copies are called.
        attack: what membership by nearest neighbours in it is called.
    """

    name: ClassVar[SpaceName]
    attack: ClassVar[Attack]

    def __init__(self, task: Task, settings: AuditSettings, compute: Compute) -> None:
        self._task, self._settings, self._compute = task, settings, compute

    @abstractmethod
    def against(self, probes: Tensor) -> Similarity:
        """The nearness of any slices to ``probes``, (n, C, H, W) at the task's size."""

    def similarities(self, probes: Tensor, patients: Patients) -> Iterator[tuple[Tensor, Tensor]]:
        """Nearness of every slice to every probe, a group of slices at a time.

        Args:
            probes: (n, C, H, W) at the task's size.
            patients: members and outsiders.

        Yields:
            (B,) indices of the slices' patients, and (n, B) nearness, on the CPU.
        """
        similar = self.against(probes)
        for owners, slices in in_groups(patients, self._settings.block):
            yield owners, similar(self._compute.to_device(slices)).cpu()


class PixelSpace(Space):
    """Normalised cross-correlation after alignment.

    A probe is cut by ``shift`` pixels on each side, so that it can be shifted that far over a slice of its own size
    with nothing made up at the rim. Where the task keeps larger slices (``fit: patch``), the probe is slid over the
    whole slice, since a patch may have been learnt at any place. Where any orientation is as likely as another, all
    eight are tried.
    """

    name, attack = "pixel", "nearest_pixel"

    def __init__(self, task: Task, settings: AuditSettings, compute: Compute) -> None:
        """Find how far images are averaged.

        Raises:
            ConfigError: less than half of a probe's side would be left of it.
        """
        super().__init__(task, settings, compute)
        self._average = max(1, min(task.size) // settings.resolution)
        left = min(task.size) - 2 * settings.shift
        if 2 * left < min(task.size):
            what = f"of {min(task.size)} pixels, {left} are left beside shifts of {settings.shift}"
            raise ConfigError("audit.shift", what, "give a shift of at most a quarter of the side")

    def against(self, probes: Tensor) -> Similarity:
        """(n, B) largest normalised cross-correlations."""
        margin = self._settings.shift
        inner = probes[..., margin : probes.shape[-2] - margin, margin : probes.shape[-1] - margin]
        turned = turn(F.avg_pool2d(inner, self._average), self._task.any_orientation)

        def similar(slices: Tensor) -> Tensor:
            slices = F.avg_pool2d(slices, self._average)
            rows, columns = slices.shape[-2:]
            fitting = [part for part in turned if part.shape[-2] <= rows and part.shape[-1] <= columns]
            return torch.stack([self._correlate(part, slices) for part in fitting]).amax(dim=0)

        return similar

    def _correlate(self, templates: Tensor, slices: Tensor) -> Tensor:
        height, width = templates.shape[-2:]
        correlation = Correlation(slices, (height, width))
        at_once = max(1, self._settings.block // correlation.numbers)
        return torch.cat([correlation(some) for some in templates.split(at_once)])


class EmbeddingSpace(Space):
    """Cosine of feature vectors, each feature of mean 0 and variance 1 over the generated images.

    A feature map is averaged over 4 x 4 cells: where something lies counts, by a quarter of the image. Larger slices
    (``fit: patch``) are cut into windows of the task's size that overlap by half, of which the nearest counts. In
    float32, whatever the precision of training.
    """

    name, attack = "embedding", "nearest_embedding"

    def __init__(
        self, embed: Embedding, generated: Tensor, task: Task, settings: AuditSettings, compute: Compute
    ) -> None:
        """Measure the features' mean and deviation.

        Args:
            embed: (B, C, H, W) at the task's size to (B, F) or (B, F, h, w).
            generated: (n, C, H, W) images.
            task: gives size and orientations.
            settings: how much is held at once.
            compute: the device.
        """
        super().__init__(task, settings, compute)
        self._embed = compute.prepare(embed).eval() if isinstance(embed, nn.Module) else embed
        features = self._features(generated)
        self._mean, self._deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)

    def against(self, probes: Tensor) -> Similarity:
        """(n, B) largest cosines."""
        turned = turn(probes, self._task.any_orientation)
        fitting = [self._directions(part) for part in turned if part.shape == probes.shape]

        def similar(slices: Tensor) -> Tensor:
            cut = windows(slices, self._task.size, overlap=2)
            theirs = self._directions(cut.flatten(0, 1))
            found = torch.stack([ours @ theirs.T for ours in fitting]).amax(dim=0)
            return found.unflatten(1, cut.shape[:2]).amax(dim=2)

        return similar

    def _directions(self, images: Tensor) -> Tensor:
        return F.normalize((self._features(images) - self._mean) / self._deviation, dim=1)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """(B, F) float32."""
        parts = []
        for some in images.split(BATCH):
            found = self._embed(self._compute.to_device(some)).float()
            if found.dim() == 4:
                found = F.adaptive_avg_pool2d(found, (min(GRID, found.shape[2]), min(GRID, found.shape[3])))
            parts.append(found.flatten(1))
        return torch.cat(parts)
