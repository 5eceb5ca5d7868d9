import numpy as np
import pytest

from garda.core.errors import DataError
from garda.data import preprocess
from garda.data.task import Intensity


def test_percentiles_of_all_channels_become_0_and_1():
    image = np.random.default_rng(0).normal(size=(3, 2, 20, 20)).astype(np.float32)
    scaled = preprocess.scale_intensity(image, None, Intensity(percentiles=(10, 90)))
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    assert np.mean(scaled == 0) == pytest.approx(0.1, abs=0.01) and np.mean(scaled == 1) == pytest.approx(0.1, abs=0.01)
    moved = preprocess.scale_intensity(image * 7 + 100, None, Intensity(percentiles=(10, 90)))
    np.testing.assert_allclose(moved, scaled, atol=1e-5)


def test_a_black_image_with_a_few_bright_pixels_keeps_them():
    image = np.zeros((1, 1, 40, 40), np.float32)
    image[..., 3, 3], image[..., 4, 4] = 50, 100
    scaled = preprocess.scale_intensity(image, None, Intensity())
    assert scaled[..., 3, 3] == 0.5 and scaled[..., 4, 4] == 1 and scaled.sum() == 1.5


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (1, 3, 3, 40)])
def test_an_image_too_small_for_bias_field_correction_is_one_line(shape: tuple[int, ...]):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    voxels = " x ".join(map(str, shape[1:]))
    with pytest.raises(
        DataError, match=f"^bias field correction: has {voxels} voxels, in which N4 finds no bias field"
    ):
        preprocess.scale_intensity(image, None, Intensity(bias_field_correction=True))


@pytest.mark.parametrize("depth", [1, 4])
def test_bias_field_correction_evens_a_shaded_image_out(depth: int):
    random = np.random.default_rng(0)
    tissue = np.where(random.random((1, depth, 48, 48)) < 0.5, 100, 200) + random.normal(0, 3, (1, depth, 48, 48))
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    shaded = (tissue * np.exp(0.6 * x + 0.3 * y)).astype(np.float32)
    settings = Intensity(bias_field_correction=True)

    def correlation(image: np.ndarray) -> float:
        return float(np.corrcoef(image.reshape(-1), np.broadcast_to(tissue, shaded.shape).reshape(-1))[0, 1])

    corrected = preprocess.scale_intensity(shaded, (3.0, 1.0, 1.0), settings)
    assert correlation(corrected) > correlation(preprocess.scale_intensity(shaded, None, Intensity())) + 0.1
    assert np.array_equal(corrected, preprocess.scale_intensity(shaded, (3.0, 1.0, 1.0), settings))
