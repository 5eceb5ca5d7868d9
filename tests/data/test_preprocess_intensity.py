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


def test_a_window_means_the_same_in_every_scan():
    image = np.linspace(-3024, 3000, 500, dtype=np.float32).reshape(1, 1, 20, 25)
    window = Intensity(window=(-160, 240))
    scaled = preprocess.scale_intensity(image, None, window)
    np.testing.assert_allclose(scaled, np.clip((image + 160) / 400, 0, 1), atol=1e-6)
    padded = np.concatenate([np.full_like(image, -2000), image], axis=-1)
    np.testing.assert_array_equal(preprocess.scale_intensity(padded, None, window)[..., 25:], scaled)
    for outside in (image - 10_000, image + 10_000):
        with pytest.raises(DataError, match=r"^intensity: has values from .* all outside the window -160 to 240"):
            preprocess.scale_intensity(outside, None, window)


def test_z_scores_look_at_voxels_above_the_floor_alone():
    random = np.random.default_rng(0)
    image = np.zeros((1, 2, 40, 40), np.float32)
    image[..., 10:30, 10:30] = random.normal(500, 50, (2, 20, 20))
    scaled = preprocess.scale_intensity(image, None, Intensity(zscore=0))
    inside = scaled[..., 10:30, 10:30]
    assert inside.mean() == pytest.approx(0.5, abs=0.01) and inside.std() == pytest.approx(1 / 6, abs=0.01)
    assert not scaled[..., :10, :].any()
    wider = np.pad(image, ((0, 0), (0, 0), (50, 50), (50, 50)))
    np.testing.assert_array_equal(
        preprocess.scale_intensity(wider, None, Intensity(zscore=0))[..., 50:90, 50:90], scaled
    )
    with pytest.raises(DataError, match="has no two voxels above the floor of 10000"):
        preprocess.scale_intensity(image, None, Intensity(zscore=10_000))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"window": (240, -160)}, "window must grow"),
        ({"window": (0, 1), "zscore": 0}, "exclude each other"),
        ({"window": (0, 1), "bias_field_correction": True}, "changes the values"),
    ],
)
def test_scales_that_cannot_be_meant(given, what):
    with pytest.raises(ValueError, match=what):
        Intensity(**given)


def test_a_task_with_percentiles_is_written_as_it_always_was():
    assert Intensity().model_dump() == {"percentiles": (0.5, 99.5), "bias_field_correction": False}
    window = Intensity(window=(-160, 240))
    assert Intensity.model_validate_json(window.model_dump_json()) == window
