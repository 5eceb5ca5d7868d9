import pytest
import torch

from garda.data import randomise
from garda.data.randomise import RandomisationSettings


def test_a_curve_takes_each_intensity_to_its_value():
    image = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).view(1, 1, 1, 5)
    curve = torch.tensor([1.0, 0.2, 0.4]).view(1, 1, 3)
    assert torch.allclose(randomise.apply_curves(image, curve).flatten(), torch.tensor([1.0, 0.6, 0.2, 0.3, 0.4]))


def test_curves_are_monotone_and_some_fall():
    torch.manual_seed(0)
    curves = randomise.draw_curves(200, 3, RandomisationSettings(inversion=0.4))
    slopes = curves.diff(dim=2).sign()
    assert (slopes == slopes[:, :, :1]).all()
    assert 0.3 < (slopes[:, 0, 0] < 0).float().mean() < 0.5
    assert curves.min() >= 0 and curves.max() <= 1
    assert (curves.amax(dim=2) - curves.amin(dim=2)).min() > 0.29
    coloured = (curves != curves[:, :1]).flatten(1).any(dim=1).float().mean()
    assert 0.4 < coloured < 0.6


@pytest.mark.parametrize(("curves", "regions", "changed"), [(0.7, 0.0, 0.7), (0.0, 0.6, 0.6), (0.3, 0.4, 0.7)])
def test_a_mixture_stays_in_range_and_the_chosen_share_changes(curves, regions, changed):
    torch.manual_seed(0)
    image = torch.rand(200, 3, 24, 16)
    label = torch.stack([image[:, 0] <= 0.5, image[:, 0] > 0.5], dim=1).float()
    found = randomise.randomise(image, label, RandomisationSettings(probability=curves, regions=regions))
    assert found.shape == image.shape
    assert found.min() >= 0 and found.max() <= 1
    assert changed - 0.1 < (found != image).flatten(1).any(dim=1).float().mean() < changed + 0.1


def test_randomisation_without_strength_is_a_curve_alone():
    torch.manual_seed(0)
    image = torch.rand(4, 1, 16, 16)
    settings = RandomisationSettings(bias=0.0, blur=0.0, coarser=1.0, noise=0.0, inversion=0.0)
    changed = randomise.randomise_appearance(image, settings)
    for before, after in zip(image.flatten(1), changed.flatten(1), strict=True):
        assert (after[before.argsort()].diff() >= -1e-5).all()


def test_regions_get_contrasts_that_no_curve_gives():
    """Two classes of one grey come apart, in both orders; within a class greys lie on a line."""
    torch.manual_seed(0)
    label = torch.zeros(100, 3, 16, 16)
    label[:, 1, :, :8], label[:, 2, :, 8:] = 1, 1
    image = 0.5 + 0.02 * torch.randn(100, 1, 16, 16)
    found = randomise.recontrast(image, label, parts=1)
    apart = found[:, 0, :, :6].mean(dim=(1, 2)) - found[:, 0, :, 10:].mean(dim=(1, 2))
    assert 0.3 < (apart > 0.05).float().mean() < 0.6 and 0.3 < (apart < -0.05).float().mean() < 0.6
    one = next(i for i in range(100) if found[i].min() > 0.2 and found[i].max() < 0.8)
    inside = torch.stack([image[one, 0, :, :4].flatten(), found[one, 0, :, :4].flatten()])
    assert torch.corrcoef(inside)[0, 1].abs() > 0.999


def test_shares_of_more_than_all_slices_are_refused():
    with pytest.raises(ValueError, match="together must be at most 1"):
        RandomisationSettings(probability=0.8, regions=0.3)
