"""From a scan's intensities and grid to the network's, and back."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from garda.core.errors import DataError
from garda.data.task import Intensity, Task

FEWEST = 4  # pixels of a side at the task's spacing; with fewer, the header is wrong
SPREAD = 3.0  # standard deviations either way of the mean that z-scores show
SHRINK = 4  # in-plane subsampling for the estimate of the bias field, which is smooth


def check_extent(shape: Sequence[int], spacing_mm: Sequence[float] | None, task: Task) -> None:
    """Refuse a spacing that cannot be meant, before anything is resampled to the task's.

    Args:
        shape: (D, H, W) of a volume.
        spacing_mm: (slice, row, column) spacing; None where the format has none.
        task: gives the spacing that slices get.

    Raises:
        DataError: a slice would have hardly a pixel, or a volume more bytes than there is memory.
    """
    if spacing_mm is None:
        return
    rows, columns = Grid.fit(shape[1:], spacing_mm[1:], task).resampled
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = 4 * shape[0] * task.channels * rows * columns  # bytes
    if min(rows, columns) < FEWEST <= min(shape[1:]) or needed > memory:
        more = f", {needed / 2**30:.0f} GiB of {memory / 2**30:.0f}" if needed > memory else ""
        size = f"would be {rows} x {columns} pixels at the task's spacing{more}"
        what = f"has pixels of {spacing_mm[1]:g} x {spacing_mm[2]:g} mm and {size}"
        raise DataError("spacing", what, "correct its header")


def scale_intensity(
    image: np.ndarray, spacing_mm: tuple[float, float, float] | None, intensity: Intensity
) -> np.ndarray:
    """Correct the bias field if asked to, then bring two values of all channels together to 0 and 1, and clip.

    >>> image = np.arange(101, dtype=np.float32).reshape(1, 1, 1, 101)
    >>> scaled = scale_intensity(image, None, Intensity(percentiles=(10, 90)))
    >>> scaled[..., [0, 10, 50, 90, 100]].tolist()
    [[[[0.0, 0.0, 0.5, 1.0, 1.0]]]]
    >>> scale_intensity(image - 50, None, Intensity(window=(-50, 50)))[0, 0, 0, [0, 25, 100]].tolist()
    [0.0, 0.25, 1.0]

    Args:
        image: (C, D, H, W) float32, finite and not constant.
        spacing_mm: (slice, row, column) spacing, mm; None where the format has none.
        intensity: which values, and whether the bias field is corrected.

    Returns:
        (C, D, H, W) float32 in [0, 1]. Where both values are one number, as percentiles of an image that is black but
        for a few pixels, minimum and maximum take their place.

    Raises:
        DataError: the bias field cannot be estimated, as in slices of fewer than 4 x 4 pixels; no voxel lies in the
            window, or fewer than two lie above the floor.
    """
    if intensity.bias_field_correction:
        image = np.stack([_correct_bias_field(channel, spacing_mm or (1.0, 1.0, 1.0)) for channel in image])
    low, high = _find_ends(image, intensity)
    if low == high:
        low, high = float(image.min()), float(image.max())
    return np.clip((image - np.float32(low)) / np.float32(high - low), 0, 1)


def _find_ends(image: np.ndarray, intensity: Intensity) -> tuple[float, float]:
    """The values that become 0 and 1."""
    remedy = "correct intensity in task.yaml, or leave the scan out"
    if intensity.window is not None:
        low, high = intensity.window
        if image.max() <= low or image.min() >= high:
            what = f"has values from {image.min():g} to {image.max():g}, all outside the window {low:g} to {high:g}"
            raise DataError("intensity", what, remedy)
        return low, high
    if intensity.zscore is not None:
        above = image[image > intensity.zscore]
        if len(above) < 2:
            raise DataError("intensity", f"has no two voxels above the floor of {intensity.zscore:g}", remedy)
        mean, deviation = float(above.mean(dtype=np.float64)), float(above.std(dtype=np.float64))
        return mean - SPREAD * deviation, mean + SPREAD * deviation
    low, high = np.percentile(image, intensity.percentiles)
    return low, high


def _correct_bias_field(image: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """(D, H, W) without its bias field, inside Otsu's mask: N4 with SimpleITK's defaults.

    Source: Tustison et al., IEEE TMI 29:1310, 2010. The field, which is smooth, is estimated on fewer pixels.
    """
    import SimpleITK as sitk

    flat = len(image) == 1
    try:
        whole = sitk.GetImageFromArray(image[0] if flat else image)
        whole.SetSpacing(spacing[:0:-1] if flat else spacing[::-1])
        small = sitk.Shrink(whole, [SHRINK, SHRINK] if flat else [SHRINK, SHRINK, 1])
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetNumberOfThreads(1)  # threads add up their parts in any order, and two runs would differ
        n4.Execute(small, sitk.OtsuThreshold(small, 0, 1))
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole)).reshape(image.shape)
    except RuntimeError:
        what = f"has {' x '.join(map(str, image.shape))} voxels, in which N4 finds no bias field"
        remedy = "switch intensity.bias_field_correction off, or leave the case out"
        raise DataError("bias field correction", what, remedy) from None
    return (image / np.exp(field)).astype(np.float32)


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
    def fit(cls, shape: Sequence[int], spacing_mm: Sequence[float] | None, task: Task, zoom: float = 1.0) -> Grid:
        """The grid on which ``task`` wants slices.

        >>> task = Task(name="t", classes=("background", "organ"), size=(64, 64), spacing_mm=(1.0, 1.0))
        >>> grid = Grid.fit((200, 160), (0.5, 0.5), task)
        >>> grid.resampled, grid.size
        ((100, 80), (64, 64))
        >>> grid.to_network(torch.rand(3, 1, 200, 160)).shape
        torch.Size([3, 1, 64, 64])

        Args:
            shape: (H, W) of the slices, pixels.
            spacing_mm: their (row, column) spacing, mm; None where the format has none, and nothing is resampled.
            task: gives spacing, size, and whether larger slices are cropped (``crop``) or kept (``patch``).
            zoom: factor by which slices are enlarged where nothing is resampled.
        """
        rows, columns = (max(1, round(count * zoom)) for count in shape)
        if spacing_mm is not None and task.spacing_mm is not None:
            steps = zip(shape, spacing_mm, task.spacing_mm, strict=True)
            rows, columns = (max(1, round(count * has / wants)) for count, has, wants in steps)
        larger = max(rows, task.size[0]), max(columns, task.size[1])
        return cls((shape[0], shape[1]), (rows, columns), task.size if task.fit == "crop" else larger)

    def to_network(self, image: Tensor) -> Tensor:
        """(D, C, H, W) to (D, C, h, w): linear, low-pass filtered where pixels become fewer, 0 outside the image.

        Values stay in their range, such as [0, 1].
        """
        return F.pad(_resample(image, self.resampled), self._margins())

    def label_to_network(self, label: Tensor, classes: int) -> Tensor:
        """(D, H, W) int64 class indices to (D, h, w): the class with the largest share of a pixel, 0 outside."""
        if self.shape != self.resampled:
            shares = F.one_hot(label.long(), classes).movedim(-1, 1).float()
            label = _resample(shares, self.resampled).argmax(dim=1)
        return F.pad(label, self._margins())

    def to_volume(self, probabilities: Tensor) -> Tensor:
        """(D, K, h, w) probabilities to (D, K, H, W); what the crop left out is background (class 0) for certain."""
        margins = [-margin for margin in self._margins()]
        background = F.pad(probabilities[:, :1], margins, value=1.0)
        others = F.pad(probabilities[:, 1:], margins)
        return _resample(torch.cat([background, others], dim=1), self.shape)

    def window(self) -> tuple[slice, slice]:
        """Rows and columns of a slice, in its own (H, W), of which the network sees the middle of each pixel.

        >>> Grid((100, 100), (50, 50), (32, 64)).window()
        (slice(18, 82, None), slice(0, 100, None))
        """
        left, right, above, below = self._margins()
        kept = []
        for before, after, count, own in zip((above, left), (below, right), self.resampled, self.shape, strict=True):
            ends = (max(0, -before), count - max(0, -after))
            kept.append(slice(*(math.ceil(end * own / count - 0.5) for end in ends)))
        return kept[0], kept[1]

    def _margins(self) -> list[int]:
        """Pixels to add left, right, above and below, in the order of ``F.pad``, which crops where they are below 0."""
        (height, width), (rows, columns) = self.size, self.resampled
        left, above = (width - columns) // 2, (height - rows) // 2
        return [left, width - columns - left, above, height - rows - above]


def _resample(slices: Tensor, size: tuple[int, int]) -> Tensor:
    """(D, C, H, W) at another size of the same extent; bit for bit the input where the size stays."""
    if slices.shape[-2:] == size:
        return slices
    return F.interpolate(slices, size=size, mode="bilinear", align_corners=False, antialias=True)
