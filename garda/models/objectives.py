"""What a segmenter learns from: labels, or replayed images of a generator."""

from collections.abc import Mapping
from typing import Literal, cast

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from garda.core.config import Config
from garda.data import augment, randomise
from garda.data.augment import AppearanceSettings, GeometrySettings
from garda.data.dataset import Batch
from garda.data.randomise import RandomisationSettings
from garda.data.task import Task
from garda.models import unet
from garda.models.generator import Generator
from garda.models.stopping import HeldOut, StoppingSettings
from garda.models.unet import SegmenterSettings
from garda.training import loop, sharding
from garda.training.device import Compute
from garda.training.loop import Stateful


class TrainingSettings(Config):
    """What both objectives of the segmenter have.

    Attributes:
        steps: number of steps.
        batch: slices a step.
        optimizer: ``adamw``, or ``sgd`` with momentum 0.9.
        learning_rate: the highest; falls to 0 by a cosine where ``decay`` is True.
        weight_decay: of the optimizer.
    """

    steps: PositiveInt
    batch: int = Field(default=16, ge=2)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat
    decay: bool = True
    weight_decay: NonNegativeFloat = 1e-4


class SupervisedTrainingSettings(TrainingSettings):
    """How the source segmenter learns.

    The rate does not fall, since nobody knows where training ends; the average of the last steps' weights is kept.

    Attributes:
        steps: at most.
        warm_up: steps over which the learning rate rises.
        average: steps over which weights are averaged; 1 keeps the last.
        stopping: when training ends earlier, by labels that are held out; None for never.
        loss: ``dice_ce`` is soft Dice plus cross entropy, ``ce`` cross entropy alone.
        geometry: augmentation of image and label; None for none.
        appearance: plain augmentation of the image; None for none.
        randomisation: appearance randomisation, before the plain augmentation; None for none.
    """

    steps: PositiveInt = 1200
    learning_rate: PositiveFloat = 2e-3
    decay: bool = False
    warm_up: NonNegativeInt = 50
    average: PositiveInt = 50
    stopping: StoppingSettings | None = StoppingSettings()
    loss: Literal["dice_ce", "ce"] = "dice_ce"
    geometry: GeometrySettings | None = GeometrySettings()
    appearance: AppearanceSettings | None = AppearanceSettings()
    randomisation: RandomisationSettings | None = None


class DistillationSettings(TrainingSettings):
    """How a segmenter learns from replayed images alone (GarDA, section 3.4).

    Attributes:
        temperature: softens both answers (Hinton et al. 2015).
    """

    steps: PositiveInt = 300
    learning_rate: PositiveFloat = 5e-4
    temperature: PositiveFloat = 2.0


class SupervisedObjective:
    """Learn from labels: soft Dice (Milletari et al. 2016, section 3) and cross entropy, or cross entropy alone.

    >>> from garda.training.device import ComputeSettings
    >>> task = Task(name="t", classes=("background", "organ"), size=(16, 16))
    >>> network, settings = SegmenterSettings(widths=(4,) * 6), SupervisedTrainingSettings(steps=1, batch=2)
    >>> objective = SupervisedObjective(task, network, settings, Compute(ComputeSettings()))
    >>> losses = objective.step(Batch(torch.rand(2, 1, 16, 16), torch.randint(2, (2, 16, 16))), step=0)
    >>> list(losses), bool(losses["segmentation"] > 0)
    (['segmentation'], True)
    """

    def __init__(
        self,
        task: Task,
        network: SegmenterSettings,
        settings: SupervisedTrainingSettings,
        compute: Compute,
        held_out: HeldOut | None = None,
        start: BasicUNet | None = None,
    ) -> None:
        """Build a segmenter.

        Args:
            task: what is segmented.
            network: architecture.
            settings: how it learns.
            compute: device and precision.
            held_out: says when it has learnt enough; None for after all steps.
            start: whose weights it begins with, and which is left as it is; None for random ones.
        """
        self.segmenter = compute.prepare(unet.build_segmenter(task, network)).train()
        if start is not None:
            self.segmenter.load_state_dict(start.state_dict())
        self.held_out = held_out
        self._average = AveragedModel(self.segmenter, multi_avg_fn=loop.ema(settings.average), use_buffers=True)
        self._average.eval().requires_grad_(False)
        self._task, self._settings, self._compute = task, settings, compute
        self._optimizer = _optimizer(self.segmenter, settings)
        self._dice_ce = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)

    def state(self) -> Mapping[str, Stateful]:
        """Network, its average, optimizer, and what held-out labels have said."""
        looks = {} if self.held_out is None else {"held_out": self.held_out}
        return {"segmenter": self.segmenter, "average": self._average, "optimizer": self._optimizer, **looks}

    @property
    def learnt(self) -> BasicUNet:
        """The network that is kept: the average."""
        return cast(BasicUNet, self._average.module)

    @property
    def finished(self) -> bool:
        """Whether held-out labels say that nothing more is learnt."""
        return self.held_out is not None and self.held_out.stopped

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a labelled batch.

        Args:
            batch: (B, C, H, W) images in [0, 1] and (B, H, W) class indices.
            step: the step's number.

        Raises:
            ValueError: the batch has no labels.
        """
        if batch.label is None:
            raise ValueError("SupervisedObjective needs labels")
        settings, image, label = self._settings, self._compute.to_device(batch.image), batch.label
        label = label.to(image.device)
        if settings.geometry is not None:
            motion = augment.draw_affine(len(image), settings.geometry, self._task.any_orientation, image.device)
            image, label = augment.warp(image, motion), augment.warp_label(label, motion)
        if settings.randomisation is not None:
            shares = F.one_hot(label, len(self._task.classes)).movedim(3, 1).float()
            image = randomise.randomise(image, shares, settings.randomisation)
        if settings.appearance is not None:
            image = augment.change_appearance(image, settings.appearance)
        part = sharding.shard(len(image))
        with self._compute.autocast():
            logits = self.segmenter(image[part])
        logits, label = logits.float(), label[part]
        dice_ce = settings.loss == "dice_ce"
        loss = self._dice_ce(logits, label.unsqueeze(1)) if dice_ce else F.cross_entropy(logits, label)
        set_rate(self._optimizer, settings, step)
        loop.backward_step(self._optimizer, loss)
        self._average.update_parameters(self.segmenter)
        if self.held_out is not None:
            self.held_out.look(self._average, step + 1)
        return {"segmentation": loss.detach()}


class DistillationObjective:
    """Learn from replayed images alone (GarDA, section 3.4).

    The teacher reads an anatomy in the source's style, the student in any style: the teacher's soft answer to G(z, 0)
    is the target of the student's answer to G(z, d), d drawn from all domains met.
    """

    def __init__(
        self, student: Module, teacher: Module, generator: Generator, settings: DistillationSettings, compute: Compute
    ) -> None:
        """Prepare the student.

        Args:
            student: learns; kept as :attr:`segmenter`.
            teacher: the source segmenter; never changes.
            generator: of all domains met; never changes.
            settings: how to learn.
            compute: device and precision.
        """
        self.segmenter = compute.prepare(student).train().requires_grad_(True)
        self._teacher = compute.prepare(teacher).eval().requires_grad_(False)
        self._generator = compute.prepare(generator).eval().requires_grad_(False)
        self._settings, self._compute = settings, compute
        self._optimizer = _optimizer(self.segmenter, settings)

    def state(self) -> Mapping[str, Stateful]:
        """The student and its optimizer; teacher and generator never change."""
        return {"segmenter": self.segmenter, "optimizer": self._optimizer}

    def step(self, batch: None, step: int) -> Mapping[str, Tensor]:
        """One step on freshly replayed images."""
        settings, part = self._settings, sharding.shard(self._settings.batch)
        with torch.no_grad(), self._compute.autocast():
            anatomy = self._generator.draw(settings.batch)[part]
            domains = torch.randint(len(self._generator.domains), (settings.batch,))[part]
            answer = self._teacher(self._generator.sample(anatomy, torch.zeros_like(domains))).float()
            image = self._generator.sample(anatomy, domains)
        with self._compute.autocast():
            logits = self.segmenter(image)
        loss = distillation(logits.float(), answer, settings.temperature)
        set_rate(self._optimizer, settings, step)
        loop.backward_step(self._optimizer, loss)
        return {"distillation": loss.detach()}


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the softened answers (Hinton et al. 2015, section 2; without its factor T^2, as published).

    L = -mean over pixels of sum softmax(teacher / T) log softmax(student / T): GarDA, section 3.4.

    Args:
        student: (B, K, H, W) logits.
        teacher: (B, K, H, W) logits.
        temperature: T > 0.

    >>> logits = torch.zeros(1, 4, 2, 2)
    >>> round(float(distillation(logits, logits, temperature=2.0)), 4)  # log 4, the entropy of four equal answers
    1.3863
    """
    return F.cross_entropy(student / temperature, torch.softmax(teacher / temperature, dim=1))


def set_rate(optimizer: torch.optim.Optimizer, settings: TrainingSettings, step: int) -> None:
    """The learning rate of a step, see :func:`garda.training.loop.cosine_lr`."""
    warm_up = settings.warm_up if isinstance(settings, SupervisedTrainingSettings) else 0
    loop.cosine_lr(optimizer, settings.learning_rate, step, settings.steps, warm_up=warm_up, decay=settings.decay)


def _optimizer(network: Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    weights, rate, decay = network.parameters(), settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(weights, rate, weight_decay=decay, fused=True)
