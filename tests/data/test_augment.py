import torch

from garda.data import augment
from garda.data.augment import AppearanceSettings, GeometrySettings, RandomisationSettings

CPU = torch.device("cpu")
STILL = GeometrySettings(probability=0.0)


def test_no_motion_leaves_image_and_label_as_they_are():
    image, label = torch.rand(3, 1, 16, 16), torch.randint(0, 3, (3, 16, 16))
    motion = augment.draw_affine(3, STILL, False, CPU)
    assert torch.allclose(augment.warp(image, motion), image, atol=1e-5)
    assert torch.equal(augment.warp_label(label, motion), label)


def test_any_orientation_gives_quarter_turns_and_mirror_images():
    torch.manual_seed(0)
    image = torch.rand(1, 1, 16, 16)
    found = {
        tuple(turned.flatten().mul(1000).round().int().tolist())
        for turned in augment.warp(image.expand(200, -1, -1, -1), augment.draw_affine(200, STILL, True, CPU))
    }
    expected = {
        tuple(side.flatten().mul(1000).round().int().tolist())
        for turns in range(4)
        for side in (torch.rot90(image, turns, (2, 3)), torch.rot90(image, turns, (2, 3)).flip(3))
    }
    assert found == expected


def test_image_and_label_move_together():
    torch.manual_seed(0)
    label = torch.zeros(8, 32, 32, dtype=torch.long)
    label[:, 8:20, 12:24] = 1
    motion = augment.draw_affine(8, GeometrySettings(probability=1.0), True, CPU)
    moved_image, moved_label = augment.warp(label[:, None].float(), motion), augment.warp_label(label, motion)
    assert not torch.equal(moved_label, label)
    assert ((moved_image[:, 0] > 0.5).long() != moved_label).float().mean() < 0.02


def test_motion_is_differentiable():
    image = torch.rand(2, 1, 8, 8, requires_grad=True)
    augment.warp(image, augment.draw_affine(2, GeometrySettings(), False, CPU)).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_appearance_stays_in_range_and_can_be_nothing():
    torch.manual_seed(0)
    image = torch.rand(4, 3, 8, 8)
    changed = augment.change_appearance(image, AppearanceSettings())
    assert changed.min() >= 0 and changed.max() <= 1 and not torch.allclose(changed, image, atol=0.01)
    nothing = AppearanceSettings(gamma=1.0, contrast=0.0, brightness=0.0, noise=0.0)
    assert torch.allclose(augment.change_appearance(image, nothing), image, atol=1e-5)


def test_a_curve_takes_each_intensity_to_its_value():
    image = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).view(1, 1, 1, 5)
    curve = torch.tensor([1.0, 0.2, 0.4]).view(1, 1, 3)
    assert torch.allclose(augment.apply_curves(image, curve).flatten(), torch.tensor([1.0, 0.6, 0.2, 0.3, 0.4]))


def test_curves_are_monotone_and_some_fall():
    torch.manual_seed(0)
    curves = augment.draw_curves(200, 3, RandomisationSettings(inversion=0.4))
    slopes = curves.diff(dim=2).sign()
    assert (slopes == slopes[:, :, :1]).all()
    assert 0.3 < (slopes[:, 0, 0] < 0).float().mean() < 0.5
    assert curves.min() >= 0 and curves.max() <= 1
    assert (curves.amax(dim=2) - curves.amin(dim=2)).min() > 0.29
    coloured = (curves != curves[:, :1]).flatten(1).any(dim=1).float().mean()
    assert 0.4 < coloured < 0.6


def test_randomised_images_stay_in_range_and_the_chosen_share_changes():
    torch.manual_seed(0)
    image = torch.rand(200, 3, 24, 16)
    changed = augment.randomise_appearance(image, RandomisationSettings(probability=0.7))
    assert changed.shape == image.shape
    assert changed.min() >= 0 and changed.max() <= 1
    assert 0.6 < (changed != image).flatten(1).any(dim=1).float().mean() < 0.8


def test_randomisation_without_strength_is_a_curve_alone():
    torch.manual_seed(0)
    image = torch.rand(4, 1, 16, 16)
    settings = RandomisationSettings(probability=1.0, bias=0.0, blur=0.0, coarser=1.0, noise=0.0, inversion=0.0)
    changed = augment.randomise_appearance(image, settings)
    for before, after in zip(image.flatten(1), changed.flatten(1), strict=True):
        assert (after[before.argsort()].diff() >= -1e-5).all()
