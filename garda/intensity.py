"""Intensities of a scan to numbers in [0, 1]; nothing here knows of a label."""

from __future__ import annotations

import numpy as np

from garda.errors import DataError
from garda.task import Intensity

SHRINK = 4  # in-plane subsampling for the estimate of the bias field, which is smooth


def scale_intensity(
    image: np.ndarray, spacing_mm: tuple[float, float, float] | None, intensity: Intensity
) -> np.ndarray:
    """Correct the bias field if asked to, then bring two percentiles of all channels together to 0 and 1, and clip.

    Args:
        image: (C, D, H, W) float32, finite and not constant.
        spacing_mm: (slice, row, column) spacing; None where the format has none.
        intensity: the percentiles, and whether the bias field is corrected.

    Returns:
        (C, D, H, W) float32 in [0, 1]. Where both percentiles are one number, as in an image that is black but for a
        few pixels, minimum and maximum take their place.

    Raises:
        DataError: the bias field cannot be estimated, as in slices of fewer than 4 x 4 pixels.
    """
    if intensity.bias_field_correction:
        image = np.stack([_correct_bias_field(channel, spacing_mm or (1.0, 1.0, 1.0)) for channel in image])
    low, high = np.percentile(image, intensity.percentiles)
    if low == high:
        low, high = image.min(), image.max()
    return np.clip((image - np.float32(low)) / np.float32(high - low), 0, 1)


def _correct_bias_field(image: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """(D, H, W) without its bias field: N4 (Tustison et al. 2010) with SimpleITK's defaults, inside Otsu's mask."""
    try:
        field = _estimate_log_bias_field(image, spacing)
    except RuntimeError:
        what = f"has {' x '.join(map(str, image.shape))} voxels, in which N4 finds no bias field"
        remedy = "switch intensity.bias_field_correction off, or leave the case out"
        raise DataError("bias field correction", what, remedy) from None
    return (image / np.exp(field)).astype(np.float32)


def _estimate_log_bias_field(image: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    import SimpleITK as sitk

    flat = len(image) == 1
    whole = sitk.GetImageFromArray(image[0] if flat else image)
    whole.SetSpacing(spacing[:0:-1] if flat else spacing[::-1])
    small = sitk.Shrink(whole, [SHRINK, SHRINK] if flat else [SHRINK, SHRINK, 1])
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)  # threads add up their parts in any order, and two runs would differ
    n4.Execute(small, sitk.OtsuThreshold(small, 0, 1))
    return sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole)).reshape(image.shape)
