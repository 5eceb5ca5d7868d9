import copy

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from garda.data.dataset import Batch
from garda.data.task import Task
from garda.data.volume import Frame, Volume
from garda.models import inference, objectives, unet
from garda.models.objectives import (
    DistillationObjective,
    DistillationSettings,
    SupervisedObjective,
    SupervisedTrainingSettings,
)
from garda.models.stylegan import StyleGenerator, StyleSettings
from garda.models.unet import MatmulUpsample, SegmenterSettings
from garda.training.device import Compute, ComputeSettings
from tests.support.errors import told

TASK = Task(name="t", classes=("background", "organ"), size=(16, 16), spacing_mm=(2.0, 2.0))
TINY = SegmenterSettings(widths=(4, 4, 4, 4, 4, 4))
COMPUTE = Compute(ComputeSettings(accelerator="cpu", precision="32"))


def square(count: int = 4) -> Batch:
    label = torch.zeros(count, 16, 16, dtype=torch.long)
    label[:, 4:12, 4:12] = 1
    return Batch(label[:, None] * 0.6 + 0.2, label)


@pytest.mark.parametrize(("loss", "optimizer", "rate"), [("dice_ce", "adamw", 4e-2), ("ce", "sgd", 0.2)])
def test_a_bright_square_is_learnt_from_labels(loss, optimizer, rate):
    rates = {"learning_rate": rate, "warm_up": 0}
    settings = SupervisedTrainingSettings(steps=15, batch=4, loss=loss, optimizer=optimizer, **rates)
    objective = SupervisedObjective(TASK, TINY, settings, COMPUTE)
    losses = [objective.step(square(), step)["segmentation"].item() for step in range(15)]
    assert sum(losses[-3:]) < sum(losses[:3]) / 2


def test_the_network_is_monais():
    ours = unet.build_segmenter(TASK, TINY).train()
    act, norm = ("relu", {"inplace": True}), ("batch", {"affine": True})
    theirs = BasicUNet(spatial_dims=2, out_channels=2, features=TINY.widths, act=act, norm=norm)
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(2, 1, 16, 32)
    answers = [network(image.clone()) for network in (ours, theirs.train())]
    torch.testing.assert_close(*answers)
    for answer in answers:
        answer.square().mean().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_doubling_is_a_transposed_convolution(layout):
    other = nn.ConvTranspose2d(3, 5, kernel_size=2, stride=2)
    ours = MatmulUpsample.like(other)
    image = torch.rand(2, 3, 4, 6).to(memory_format=layout)
    drawn = ours(image)
    assert drawn.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(drawn, other(image))
    assert ours.state_dict().keys() == other.state_dict().keys()


def test_labels_are_needed():
    objective = SupervisedObjective(TASK, TINY, SupervisedTrainingSettings(geometry=None, appearance=None), COMPUTE)
    assert "SupervisedObjective needs labels" in told(ValueError, objective.step, Batch(square().image, None), 0)


def test_the_learning_rate_is_a_function_of_the_step():
    for decay, expected in ((True, [0.5, 0.5, (1 + np.cos(np.pi * 0.9)) / 2]), (False, [0.5, 1.0, 1.0])):
        settings = SupervisedTrainingSettings(steps=10, learning_rate=1.0, decay=decay, warm_up=2)
        objective, rates = SupervisedObjective(TASK, TINY, settings, COMPUTE), []
        for step in (0, 5, 9):
            objective.step(square(), step)
            rates.append(objective.state()["optimizer"].param_groups[0]["lr"])
        assert rates == pytest.approx(expected)


def test_what_is_kept_is_the_average_of_the_last_weights():
    settings = SupervisedTrainingSettings(steps=3, learning_rate=1e-2, warm_up=0, average=3)
    objective, seen = SupervisedObjective(TASK, TINY, settings, COMPUTE), []
    for step in range(3):
        objective.step(square(), step)
        seen.append(objective.segmenter.final_conv.weight.detach().clone())
    torch.testing.assert_close(objective.learnt.final_conv.weight, torch.stack(seen).mean(dim=0))
    assert not objective.learnt.training


def test_distillation_is_least_where_the_answers_agree():
    teacher = torch.randn(2, 3, 4, 4)
    same = objectives.distillation(teacher, teacher, 2.0)
    assert objectives.distillation(teacher + torch.randn_like(teacher), teacher, 2.0) > same
    entropy = torch.distributions.Categorical(logits=teacher.movedim(1, -1) / 2).entropy().mean()
    assert same == pytest.approx(entropy.item(), rel=1e-5)


def test_the_student_learns_the_teachers_answers_and_nothing_else_changes():
    generator = StyleGenerator(1, (16, 16), StyleSettings(latent=4, widths=((4,), (4,))))
    for domain in ("a", "b"):
        generator.add_domain(domain)
    teacher, student = unet.build_segmenter(TASK, TINY), unet.build_segmenter(TASK, TINY).requires_grad_(False)
    frozen = copy.deepcopy([teacher.state_dict(), generator.state_dict()])
    settings = DistillationSettings(steps=20, batch=8, learning_rate=2e-2)
    objective = DistillationObjective(student, teacher, generator, settings, COMPUTE)
    losses = [objective.step(None, step)["distillation"].item() for step in range(20)]
    assert sum(losses[-5:]) < sum(losses[:5])
    for before, after in zip(frozen, [teacher.state_dict(), generator.state_dict()], strict=True):
        assert all(torch.equal(value, after[name]) for name, value in before.items())


class Threshold(nn.Module):
    """Organ where the image is bright."""

    def forward(self, image):
        return torch.cat([0.5 - image, image - 0.5], dim=1) * 100


@pytest.mark.parametrize(
    ("height", "width", "spacing", "fit", "wrong"),
    [
        (24, 30, None, "crop", 0.03),
        (24, 30, (5.0, 2.0, 2.0), "crop", 0.03),
        (24, 30, (5.0, 1.0, 1.0), "crop", 0.03),
        (50, 70, None, "patch", 0),
    ],
)
def test_a_whole_volume_comes_back_on_its_own_grid(height, width, spacing, fit, wrong):
    image = torch.zeros(3, 1, height, width)
    image[:, :, height // 2 - 4 : height // 2 + 4, width // 2 - 6 : width // 2 + 6] = 1
    volume = Volume("c", image, None, None, np.eye(4), spacing, Frame())
    label = inference.segment(Threshold(), volume, TASK.model_copy(update={"fit": fit}), COMPUTE, batch=2)
    assert label.shape == (3, height, width) and label.dtype == torch.int64
    assert (label != image[:, 0].long()).float().mean() <= wrong
    assert label[:, :2].sum() == 0


@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_logits_are_float32_whatever_the_precision(precision):
    compute = Compute(ComputeSettings(accelerator="cpu", precision=precision, threads=1))
    objective = SupervisedObjective(TASK, TINY, SupervisedTrainingSettings(), compute)
    loss = objective.step(square(), 0)["segmentation"]
    assert loss.dtype == torch.float32 and loss.isfinite()
