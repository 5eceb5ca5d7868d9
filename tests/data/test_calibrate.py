import pytest
import torch
from torch import Tensor

from garda.data import calibrate, randomise
from garda.data.dataset import Batch
from garda.data.randomise import RandomisationSettings

SETTINGS = RandomisationSettings()


def slices(difference: float, spread: float, count: int = 16) -> Batch:
    """A ring of class 1 at 0.5 around a disc of class 2, ``difference`` brighter, on black."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    radius = torch.hypot(y - 16, x - 16)
    label = (radius < 12).long() + (radius < 6).long()
    image = (label > 0) * 0.5 + (label > 1) * difference
    torch.manual_seed(0)
    noisy = (image + spread * torch.randn(count, 1, 32, 32)).clamp(0, 1)
    return Batch(noisy, label.expand(count, -1, -1))


def left(settings: RandomisationSettings, batch: Batch, strength: float) -> Tensor:
    torch.manual_seed(3)
    weaker = calibrate.scale_strength(settings, strength)
    changed = randomise.randomise_appearance(batch.image, weaker)
    assert batch.label is not None
    return (calibrate.contrast(changed, batch.label, 3) / calibrate.contrast(batch.image, batch.label, 3)).mean()


def test_contrast_is_distance_over_spread():
    batch = slices(0.2, 0.05)
    assert batch.label is not None
    found = calibrate.contrast(batch.image, batch.label, 3)
    assert found.shape == (16,)
    assert torch.allclose(found, torch.tensor(0.2 / 0.05), rtol=0.2)
    assert torch.allclose(calibrate.contrast(batch.image * 0.5, batch.label, 3), found, rtol=1e-3)


def test_one_foreground_class_is_compared_with_the_background():
    batch = slices(0.2, 0.05)
    assert batch.label is not None
    assert (calibrate.contrast(batch.image, batch.label.clamp_max(1), 2) > 5).all()
    assert (calibrate.contrast(batch.image, torch.zeros_like(batch.label), 2) == 0).all()


def test_a_strong_contrast_bears_all_and_a_faint_one_less():
    assert calibrate.calibrate_strength(SETTINGS, [slices(0.3, 0.1)], 3, 3) == 1.0
    faint = slices(0.05, 0.03)
    strength = calibrate.calibrate_strength(SETTINGS, [faint], 3, 3)
    assert 0 < strength < 1
    assert left(SETTINGS, faint, strength) >= SETTINGS.contrast > left(SETTINGS, faint, strength + 1 / 32)


def test_nothing_is_weakened_where_nothing_is_to_be_kept_or_seen():
    faint = slices(0.05, 0.03)
    assert calibrate.calibrate_strength(SETTINGS.model_copy(update={"contrast": 0.0}), [faint], 3, 3) == 1.0
    assert faint.label is not None
    assert calibrate.calibrate_strength(SETTINGS, [Batch(faint.image, torch.zeros_like(faint.label))], 3, 3) == 1.0
    assert calibrate.scale_strength(SETTINGS, 1.0) == SETTINGS
    nothing = {"bias": 0.0, "blur": 0.0, "coarser": 1.0, "noise": 0.0}
    assert calibrate.scale_strength(SETTINGS, 0.0) == SETTINGS.model_copy(update=nothing)


def test_measuring_leaves_the_random_numbers_alone():
    batch = slices(0.05, 0.03)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    calibrate.calibrate_strength(SETTINGS, [batch], 3, 3)
    assert torch.equal(torch.rand(3), expected)


def test_contrast_needs_labels():
    with pytest.raises(ValueError, match="needs labels"):
        calibrate.calibrate_strength(SETTINGS, [Batch(torch.rand(2, 1, 16, 16), None)], 2, 0)
