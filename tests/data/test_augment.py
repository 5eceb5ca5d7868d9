import torch

from garda.data import augment
from garda.data.augment import AppearanceSettings, GeometrySettings

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
