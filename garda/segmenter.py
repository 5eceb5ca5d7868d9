"""The segmentation network, its two lessons, and the segmentation of a whole volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.layers.factories import Norm
from monai.networks.nets import BasicUNet
from monai.networks.nets.basic_unet import UpCat
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from garda import whole_batch
from garda.augment import (
    AppearanceSettings,
    GeometrySettings,
    RandomisationSettings,
    change_appearance,
    draw_motion,
    move_image,
    move_label,
    randomise_appearance,
)
from garda.compute import Compute, M
from garda.config import Config
from garda.generators.base import Generator
from garda.slices import Batch
from garda.task import Task
from garda.training import Stateful, descend, set_rate
from garda.volumes import Volume, grid_for

Width = Annotated[int, Field(gt=0, le=2048)]  # a package from elsewhere may ask for any


@Norm.factory_function("shared_batch")
def _shared_batch(dimensions: int) -> type[nn.Module]:
    """MONAI's name for batch normalisation that several processes share."""
    return (whole_batch.BatchNorm1d, whole_batch.BatchNorm2d)[dimensions - 1]


class SegmenterSettings(Config):
    """Architecture: a U-Net (Ronneberger et al. 2015) with batch normalisation, MONAI's BasicUNet.

    Attributes:
        widths: channels of the five resolutions, then of the last layer before the classes.
    """

    widths: tuple[Width, Width, Width, Width, Width, Width] = (16, 32, 64, 128, 128, 16)


class LessonSettings(Config):
    """What both lessons of the segmenter share.

    Attributes:
        steps: number of steps.
        batch: slices a step.
        optimizer: ``adamw``, or ``sgd`` with momentum 0.9.
        learning_rate: at the first step; falls to 0 by a cosine where ``decay`` is True.
        weight_decay: of the optimizer.
    """

    steps: PositiveInt
    batch: int = Field(default=16, ge=2)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat
    decay: bool = True
    weight_decay: NonNegativeFloat = 1e-4


class LabelLessonSettings(LessonSettings):
    """How the source segmenter learns.

    Attributes:
        loss: ``dice_ce`` is soft Dice plus cross entropy, ``ce`` cross entropy alone.
        geometry: augmentation of image and label; None for none.
        appearance: plain augmentation of the image; None for none.
        randomisation: appearance randomisation, before the plain augmentation; None for none.
    """

    steps: PositiveInt = 600
    learning_rate: PositiveFloat = 2e-3
    loss: Literal["dice_ce", "ce"] = "dice_ce"
    geometry: GeometrySettings | None = GeometrySettings()
    appearance: AppearanceSettings | None = AppearanceSettings()
    randomisation: RandomisationSettings | None = None


class ReplayLessonSettings(LessonSettings):
    """How a segmenter learns from replayed images alone (GarDA, section 3.4).

    Attributes:
        temperature: softens both answers (Hinton et al. 2015).
    """

    steps: PositiveInt = 300
    learning_rate: PositiveFloat = 5e-4
    temperature: PositiveFloat = 2.0


class Doubling(nn.ConvTranspose2d):
    """A transposed convolution of 2x2 pixels with stride 2 as the product of matrices that it is: a pixel becomes four.

    On a CPU, torch's own takes two to three times as long to learn (docs/performance.md). Weights are the same.
    """

    @classmethod
    def like(cls, other: nn.ConvTranspose2d) -> Doubling:
        """With the weights of ``other``."""
        made = nn.utils.skip_init(cls, other.in_channels, other.out_channels, kernel_size=2, stride=2)
        made.weight, made.bias = other.weight, other.bias
        return made

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, 2 H, 2 W), channels-last."""
        count, inputs, height, width = x.shape
        weight = self.weight.permute(2, 3, 1, 0).reshape(-1, inputs, 1, 1)
        bias = None if self.bias is None else self.bias.repeat(4)
        four = F.conv2d(x, weight, bias).permute(0, 2, 3, 1).reshape(count, height, width, 2, 2, self.out_channels)
        return four.transpose(2, 3).reshape(count, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)


def with_torchs_doubling(network: M) -> M:
    """``network`` itself, whose :class:`Doubling` is computed by torch's own operation from now on."""
    for part in network.modules():
        if isinstance(part, Doubling):
            part.__class__ = nn.ConvTranspose2d  # type: ignore[assignment]
    return network


def build_segmenter(task: Task, settings: SegmenterSettings) -> BasicUNet:
    """A network from (B, ``task.channels``, H, W) in [0, 1] to (B, K, H, W) logits; H and W multiples of 16."""
    network = BasicUNet(
        spatial_dims=2,
        in_channels=task.channels,
        out_channels=len(task.classes),
        features=settings.widths,
        norm="shared_batch",
        act=("relu", {"inplace": True}),
    )
    for part in network.modules():
        if isinstance(part, UpCat):
            part.is_pad = False  # sides fit, and padding by nothing copies, in float32 and the cat after it too
            part.upsample.deconv = Doubling.like(part.upsample.deconv)
    return network


class FromLabels:
    """Learn the source from its labels."""

    def __init__(self, task: Task, network: SegmenterSettings, lesson: LabelLessonSettings, compute: Compute) -> None:
        self.segmenter = compute.prepare(build_segmenter(task, network)).train()
        self._task, self._lesson, self._compute = task, lesson, compute
        self._optimizer = _optimizer(self.segmenter, lesson)
        self._loss = (
            DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
            if lesson.loss == "dice_ce"
            else _CrossEntropy()
        )

    def state(self) -> Mapping[str, Stateful]:
        """Network and optimizer."""
        return {"segmenter": self.segmenter, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a labelled batch."""
        if batch.label is None:
            raise ValueError("FromLabels needs labels")
        image, label = self._compute.place(batch.image), batch.label.to(self._compute.device)
        if self._lesson.geometry is not None:
            motion = draw_motion(len(image), self._lesson.geometry, self._task.any_orientation, image.device)
            image, label = move_image(image, motion), move_label(label, motion)
        if self._lesson.randomisation is not None:
            image = randomise_appearance(image, self._lesson.randomisation)
        if self._lesson.appearance is not None:
            image = change_appearance(image, self._lesson.appearance)
        rate = self._lesson.learning_rate
        set_rate(self._optimizer, rate, step, self._lesson.steps, decay=self._lesson.decay)
        part = whole_batch.part(len(image))
        with self._compute.autocast():
            logits = self.segmenter(image[part])
        loss = self._loss(logits.float(), label[part].unsqueeze(1))
        descend(self._optimizer, loss)
        return {"segmentation": loss.detach()}


class FromReplay:
    """Learn from replayed images alone: the teacher reads an anatomy in the source's look, the student in any look.

    The teacher's soft answer to G(z, 0) is the lesson for the student's answer to G(z, d), d drawn from all domains
    seen: L = -mean sum softmax(teacher / T) log softmax(student / T), T the temperature.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        generator: Generator,
        lesson: ReplayLessonSettings,
        compute: Compute,
    ) -> None:
        self.segmenter = compute.prepare(student).train().requires_grad_(True)
        self._teacher = compute.prepare(teacher).eval().requires_grad_(False)
        self._generator = compute.prepare(generator).eval().requires_grad_(False)
        self._lesson, self._compute = lesson, compute
        self._optimizer = _optimizer(self.segmenter, lesson)

    def state(self) -> Mapping[str, Stateful]:
        """The student and its optimizer; teacher and generator never change."""
        return {"segmenter": self.segmenter, "optimizer": self._optimizer}

    def step(self, batch: None, step: int) -> Mapping[str, Tensor]:
        """One step on freshly replayed images."""
        lesson = self._lesson
        with torch.no_grad(), self._compute.autocast():
            part = whole_batch.part(lesson.batch)
            anatomy = self._generator.draw(lesson.batch)[part]
            domains = torch.randint(len(self._generator.domains), (lesson.batch,))[part]
            answer = self._teacher(self._generator.sample(anatomy, torch.zeros_like(domains))).float()
            image = self._generator.sample(anatomy, domains)
        set_rate(self._optimizer, lesson.learning_rate, step, lesson.steps, decay=lesson.decay)
        with self._compute.autocast():
            logits = self.segmenter(image)
        loss = distillation(logits.float(), answer, lesson.temperature)
        descend(self._optimizer, loss)
        return {"distillation": loss.detach()}


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the softened answers (Hinton et al. 2015, section 2; without its factor T^2, as published).

    Args:
        student: (B, K, H, W) logits.
        teacher: (B, K, H, W) logits.
        temperature: T > 0.
    """
    return F.cross_entropy(student / temperature, torch.softmax(teacher / temperature, dim=1))


def segment(segmenter: nn.Module, volume: Volume, task: Task, compute: Compute, batch: int = 16) -> Tensor:
    """Segment a whole volume on its own grid; what the crop left out is background.

    Args:
        segmenter: in evaluation mode, on ``compute``'s device.
        volume: any volume read for ``task``.
        task: gives the network's grid.
        compute: device and precision.
        batch: slices or windows computed at once.

    Returns:
        (D, H, W) int64 class indices on the CPU.
    """
    grid = grid_for(volume, task)
    image = grid.to_network(volume.image)
    one_window = tuple(image.shape[-2:]) == tuple(task.size)
    infer = SlidingWindowInferer(task.size, sw_batch_size=batch, overlap=0.25, mode="gaussian")

    def network(windows: Tensor) -> Tensor:
        with compute.autocast():
            return segmenter(compute.place(windows)).float()

    with torch.inference_mode():
        parts = (compute.place(part) for part in image.split(batch))
        logits = (network(part) if one_window else infer(part, network) for part in parts)
        labels = [grid.to_volume(torch.softmax(part, dim=1)).argmax(dim=1).cpu() for part in logits]
    return torch.cat(labels)


class _CrossEntropy(nn.Module):
    """Cross entropy with the label shaped as MONAI's losses want it, (B, 1, H, W)."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label.squeeze(1))


def _optimizer(network: nn.Module, lesson: LessonSettings) -> torch.optim.Optimizer:
    if lesson.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), lr=lesson.learning_rate, momentum=0.9, weight_decay=lesson.weight_decay
        )
    return torch.optim.AdamW(
        network.parameters(), lr=lesson.learning_rate, weight_decay=lesson.weight_decay, fused=True
    )
