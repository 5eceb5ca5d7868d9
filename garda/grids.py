"""The network's grid: in-plane resampling, then a crop or a margin around the centre, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from garda.task import Task


@dataclass(frozen=True)
class Grid:
    """How the slices of a volume lie on the network's grid.

    Resampling keeps the physical extent: the outer edges of the first and last pixel stay where they are, and the
    pixels between become ``extent / n``, which is the wanted spacing up to the rounding of n.

    Attributes:
        shape: (H, W) of the volume's slices.
        resampled: (H', W') after resampling; ``shape`` where nothing is resampled.
        size: (h, w) of the network's slices.
    """

    shape: tuple[int, int]
    resampled: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def fit(cls, shape: Sequence[int], spacing_mm: Sequence[float] | None, task: Task) -> Grid:
        """The grid on which ``task`` wants slices.

        Args:
            shape: (H, W) of the slices.
            spacing_mm: their (row, column) spacing; None where the format has none, and nothing is resampled.
            task: gives spacing, size, and whether larger slices are cropped (``crop``) or kept (``patch``).
        """
        resampled = _pair(shape)
        if spacing_mm is not None and task.spacing_mm is not None:
            steps = zip(shape, spacing_mm, task.spacing_mm, strict=True)
            resampled = _pair([max(1, round(count * has / wants)) for count, has, wants in steps])
        larger = _pair([max(sides) for sides in zip(resampled, task.size, strict=True)])
        return cls(_pair(shape), resampled, task.size if task.fit == "crop" else larger)

    def to_network(self, image: Tensor) -> Tensor:
        """(D, C, H, W) to (D, C, h, w): linear, low-pass filtered where pixels become fewer, 0 outside the image."""
        return F.pad(_resample(image, self.resampled), self._margins())

    def label_to_network(self, label: Tensor, classes: int) -> Tensor:
        """(D, H, W) class indices to (D, h, w): the class with the largest share of a pixel, background outside."""
        if self.shape != self.resampled:
            shares = F.one_hot(label.long(), classes).movedim(-1, 1).float()
            label = _resample(shares, self.resampled).argmax(dim=1)
        return F.pad(label, self._margins())

    def to_volume(self, probabilities: Tensor) -> Tensor:
        """(D, K, h, w) to (D, K, H, W); what the crop left out is background (class 0) with probability 1."""
        margins = [-margin for margin in self._margins()]
        background = F.pad(probabilities[:, :1], margins, value=1.0)
        others = F.pad(probabilities[:, 1:], margins)
        return _resample(torch.cat([background, others], dim=1), self.shape)

    def _margins(self) -> list[int]:
        """Pixels to add left, right, above and below, in the order of ``F.pad``, which crops where they are below 0."""
        (height, width), (rows, columns) = self.size, self.resampled
        left, above = (width - columns) // 2, (height - rows) // 2
        return [left, width - columns - left, above, height - rows - above]


def _resample(slices: Tensor, size: tuple[int, int]) -> Tensor:
    """(D, C, H, W) at another size of the same extent; bit for bit the input where the size stays."""
    if _pair(slices.shape[-2:]) == size:
        return slices
    return F.interpolate(slices, size=size, mode="bilinear", align_corners=False, antialias=True)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    first, second = numbers
    return int(first), int(second)
