"""Lessons beside the source's: what a segmenter can learn from images without labels, and from several domains.

As in :mod:`garda.augment`, random numbers come from torch's global generator, which :func:`garda.training.fit` seeds
before every step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from garda import whole_batch
from garda.augment import AppearanceSettings, change_appearance
from garda.compute import Compute
from garda.config import Config
from garda.seeds import derive_seed
from garda.segmenter import FromLabels, LabelLessonSettings, SegmenterSettings
from garda.slices import Batch, Slices
from garda.task import Task
from garda.training import Stage, Stateful, descend

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # axes turned over, the image as it is first


class StatisticsSettings(Config):
    """How normalisation statistics are estimated.

    Attributes:
        batches: number of batches that are averaged.
        batch: slices a batch.
    """

    batches: PositiveInt = 50
    batch: int = Field(default=16, ge=2)


def estimate_statistics(
    network: nn.Module, slices: Slices, settings: StatisticsSettings, stage: Stage, compute: Compute
) -> None:
    """Replace a network's running means and variances by their plain averages over batches of a domain; in place.

    It takes seconds: a stop in between keeps nothing, and the stage begins again.

    Args:
        network: on ``compute``'s device.
        slices: the domain's images.
        settings: how many.
        stage: seeds the batches, is told progress and seconds.
        compute: device and precision.

    Raises:
        Interrupted: a stop was asked for; the statistics are of no use then.
    """

    def images() -> Iterator[Tensor]:
        for step in range(settings.batches):
            stage.stopping.check(stage.name)
            yield compute.place(slices.batch(step, settings.batch, stage.seed).image)
            stage.progress(step + 1, settings.batches)

    started = time.monotonic()
    with compute.autocast():
        update_bn(images(), network)
    stage.ended(time.monotonic() - started)


class FromEntropy:
    """Learn to be sure: only normalisation's scales and shifts, under the batch's own statistics (Wang et al. 2021).

    L = mean over pixels of -sum_c p_c log p_c (section 3.1). The running statistics that are noted on the way belong to
    scales and shifts that have changed since; :func:`estimate_statistics` is due afterwards.
    """

    def __init__(self, network: BasicUNet, learning_rate: float, compute: Compute) -> None:
        self.segmenter = compute.prepare(network).train().requires_grad_(False)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        weights = [weight.requires_grad_(True) for norm in norms for weight in norm.parameters()]
        self._optimizer = torch.optim.Adam(weights, lr=learning_rate, fused=True)
        self._compute = compute

    def state(self) -> Mapping[str, Stateful]:
        """Network and optimizer."""
        return {"segmenter": self.segmenter, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on an unlabelled batch."""
        with self._compute.autocast():
            logits = self.segmenter(self._compute.place(batch.image)[whole_batch.part(len(batch.image))])
        loss = entropy(logits.float())
        descend(self._optimizer, loss)
        return {"entropy": loss.detach()}


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the answers to the pixels of (B, K, H, W) logits, nats, in [0, log K]."""
    return Categorical(logits=logits.movedim(1, -1), validate_args=False).entropy().mean()


class TeacherLessonSettings(Config):
    """How a student learns from the average of itself.

    Attributes:
        steps: number of steps.
        batch: slices a step.
        learning_rate: of Adam.
        momentum: of the teacher's average, a step. The published 0.999 is for thousands of steps; of 0.99, a hundred
            steps leave 37 % of the start.
        restoration: probability that a weight of the student is set back to the source's, a step.
        views: how many views of an image the teacher's answer is averaged over, the image as it is among them: its
            mirror images where the task has no orientation, else changes of its appearance.
        appearance: of the student's image, and of the teacher's views.
    """

    steps: PositiveInt = 150
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 5e-4
    momentum: float = Field(default=0.99, ge=0, lt=1)
    restoration: float = Field(default=0.01, ge=0, le=1)
    views: int = Field(default=2, ge=1, le=len(FLIPS))
    appearance: AppearanceSettings = AppearanceSettings()


class FromTeacher:
    """A student agrees with its own average, which sees an easier image (Tarvainen and Valpola, NeurIPS 2017).

    In CoTTA's form (Wang et al., CVPR 2022, section 3.2): the teacher's soft answer is an average over weights and
    views, and weights of the student are now and then set back to the source's; here before the teacher's average is
    updated and not after it, so that what is set back never enters it.

    The student normalises by its batch, as in any training. The teacher averages the student's running statistics
    along with the weights and answers with them, since that is how it is going to predict.
    """

    def __init__(
        self, student: BasicUNet, source: BasicUNet, task: Task, lesson: TeacherLessonSettings, compute: Compute
    ) -> None:
        """Begin with student and teacher alike.

        Args:
            student: learns; changed in place.
            source: whose weights are restored; never changed.
            task: whether images may be turned over.
            lesson: how.
            compute: device and precision.
        """
        self._student = compute.prepare(student).train().requires_grad_(True)
        self._source = compute.prepare(source)
        self._average = AveragedModel(
            self._student, multi_avg_fn=get_ema_multi_avg_fn(lesson.momentum), use_buffers=True
        )
        self._average.eval().requires_grad_(False)
        self._average.update_parameters(self._student)  # the first update copies; all later ones average
        self._optimizer = torch.optim.Adam(self._student.parameters(), lr=lesson.learning_rate, fused=True)
        self._task, self._lesson, self._compute = task, lesson, compute

    @property
    def teacher(self) -> BasicUNet:
        """The average: what is kept, in evaluation mode and without gradients."""
        return self._average.module

    def state(self) -> Mapping[str, Stateful]:
        """Student, its optimizer and its average; the source never changes."""
        return {"student": self._student, "student_optimizer": self._optimizer, "average": self._average}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on an unlabelled batch."""
        image = self._compute.place(batch.image)
        answer, part = self._answer(image), whole_batch.part(len(image))
        with self._compute.autocast():
            logits = self._student(change_appearance(image, self._lesson.appearance)[part])
        loss = F.cross_entropy(logits.float(), answer[part])
        descend(self._optimizer, loss)
        self._restore()
        self._average.update_parameters(self._student)
        return {"consistency": loss.detach()}

    @torch.no_grad()
    def _answer(self, image: Tensor) -> Tensor:
        """(B, K, H, W) probabilities, averaged over the views of (B, C, H, W)."""
        answers = []
        for number, axes in enumerate(FLIPS[: self._lesson.views]):
            turned = axes if self._task.any_orientation else ()
            view = image if number == 0 or turned else change_appearance(image, self._lesson.appearance)
            with self._compute.autocast():
                logits = self._average(view.flip(turned))
            answers.append(torch.softmax(logits.float(), dim=1).flip(turned))
        return torch.stack(answers).mean(dim=0)

    @torch.no_grad()
    def _restore(self) -> None:
        if not self._lesson.restoration:
            return
        for weight, source in zip(self._student.parameters(), self._source.parameters(), strict=True):
            chosen = (torch.rand(weight.shape) < self._lesson.restoration).to(weight.device)
            weight.copy_(torch.where(chosen, source, weight))


def mix(slices: Mapping[str, Slices], step: int, size: int, seed: int) -> Batch:
    """``size`` slices of several domains in equal shares, the remainder going round; a pure function as ``batch`` is.

    Args:
        slices: by domain's name; all labelled, or the batch has no labels.
        step: the step's number.
        size: of the batch.
        seed: of the stage.
    """
    turn = step % len(slices)
    names = [*slices][turn:] + [*slices][:turn]
    shares = {name: len(range(place, size, len(names))) for place, name in enumerate(names[:size])}
    parts = [slices[name].batch(step, share, derive_seed(seed, name)) for name, share in shares.items()]
    labels = [part.label for part in parts if part.label is not None]
    image = torch.cat([part.image for part in parts])
    return Batch(image, torch.cat(labels) if len(labels) == len(parts) else None)


def continue_lesson(
    start: BasicUNet, task: Task, network: SegmenterSettings, lesson: LabelLessonSettings, compute: Compute
) -> FromLabels:
    """A lesson from labels whose network begins with the weights of ``start``, which is left as it is."""
    learner = FromLabels(task, network, lesson, compute)
    learner.segmenter.load_state_dict(start.state_dict())
    return learner
