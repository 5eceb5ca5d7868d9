"""A mean teacher on the target's images, with the source's weights now and then restored.

Wang et al., "Continual test-time domain adaptation" (CoTTA), CVPR 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from garda.core.config import Config
from garda.data import augment
from garda.data.augment import AppearanceSettings
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.training import loop, sharding
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import Stateful

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # axes turned over, the image as it is first


class MeanTeacherSettings(Config):
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


class MeanTeacherObjective:
    """A student agrees with its own average, which sees an easier image (Tarvainen and Valpola, NeurIPS 2017).

    In CoTTA's form (Wang et al., CVPR 2022, section 3.2): the teacher's soft answer is an average over weights and
    views, and weights of the student are now and then set back to the source's; here before the teacher's average is
    updated and not after it, so that what is set back never enters it.

    The student normalises by its batch, as in any training. The teacher averages the student's running statistics
    along with the weights and answers with them, since that is how it is going to predict.
    """

    def __init__(
        self, student: BasicUNet, source: BasicUNet, task: Task, settings: MeanTeacherSettings, compute: Compute
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
            self._student, multi_avg_fn=get_ema_multi_avg_fn(settings.momentum), use_buffers=True
        )
        self._average.eval().requires_grad_(False)
        self._average.update_parameters(self._student)  # the first update copies; all later ones average
        self._optimizer = torch.optim.Adam(self._student.parameters(), lr=settings.learning_rate, fused=True)
        self._task, self._settings, self._compute = task, settings, compute

    @property
    def teacher(self) -> BasicUNet:
        """The average: what is kept, in evaluation mode and without gradients."""
        return self._average.module

    def state(self) -> Mapping[str, Stateful]:
        """Student, its optimizer and its average; the source never changes."""
        return {"student": self._student, "student_optimizer": self._optimizer, "average": self._average}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on an unlabelled batch."""
        image = self._compute.to_device(batch.image)
        answer, part = self._answer(image), sharding.shard(len(image))
        with self._compute.autocast():
            logits = self._student(augment.change_appearance(image, self._settings.appearance)[part])
        loss = F.cross_entropy(logits.float(), answer[part])
        loop.backward_step(self._optimizer, loss)
        self._restore()
        self._average.update_parameters(self._student)
        return {"consistency": loss.detach()}

    @torch.no_grad()
    def _answer(self, image: Tensor) -> Tensor:
        """(B, K, H, W) probabilities, averaged over the views of (B, C, H, W)."""
        answers = []
        for number, axes in enumerate(FLIPS[: self._settings.views]):
            turned = axes if self._task.any_orientation else ()
            view = image if number == 0 or turned else augment.change_appearance(image, self._settings.appearance)
            with self._compute.autocast():
                logits = self._average(view.flip(turned))
            answers.append(torch.softmax(logits.float(), dim=1).flip(turned))
        return torch.stack(answers).mean(dim=0)

    @torch.no_grad()
    def _restore(self) -> None:
        if not self._settings.restoration:
            return
        for weight, source in zip(self._student.parameters(), self._source.parameters(), strict=True):
            chosen = (torch.rand(weight.shape) < self._settings.restoration).to(weight.device)
            weight.copy_(torch.where(chosen, source, weight))


class CoTTA(Method[MeanTeacherSettings]):
    """One network that goes on from site to site: each stage's result is the averaged teacher."""

    Settings = MeanTeacherSettings

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """A student and its average, both from the segmenter as it is; what is restored are the stage-0 weights."""
        phase, settings = stage("segmenter"), self.settings
        segmenter = loop.fit(
            lambda: MeanTeacherObjective(
                copy.deepcopy(knowledge.segmenter), knowledge.source_segmenter, self.task, settings, self.compute
            ),
            lambda step: slices.batch(step, settings.batch, phase.seed),
            settings.steps,
            phase,
        ).teacher
        return replace(knowledge, segmenter=segmenter, domains=(*knowledge.domains, domain))
