"""CoTTA: a mean teacher on the target's images; weights are now and then set back to the source's.

Wang et al., "Continual test-time domain adaptation", CVPR 2022.
"""

import copy

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from garda.data import augment
from garda.data.augment import AppearanceSettings
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.methods.base import Method, TargetTrainingSettings
from garda.methods.knowledge import Knowledge
from garda.training import loop, sharding
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import Stateful

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # axes turned over, the image as it is first


class MeanTeacherSettings(TargetTrainingSettings):
    """How a student learns from the average of itself.

    Attributes:
        steps: number of steps.
        batch: slices a step.
        learning_rate: of Adam.
        momentum: of the teacher's average, a step. The published 0.999 is for thousands of steps; of 0.99, a hundred
            steps leave 37 % of the start.
        restoration: probability that a weight of the student is set back to the source's, a step.
        views: of an image, over which the teacher's prediction is averaged, the image as it is among them: its mirror
            images where the task has no orientation, else changes of its appearance.
        appearance: of the student's image, and of the teacher's views.
    """

    momentum: float = Field(default=0.99, ge=0, lt=1)
    restoration: float = Field(default=0.01, ge=0, le=1)
    views: int = Field(default=2, ge=1, le=len(FLIPS))
    appearance: AppearanceSettings = AppearanceSettings()


class MeanTeacherObjective:
    """A student agrees with its own average, which sees an easier image (Tarvainen and Valpola, NeurIPS 2017).

    In CoTTA's form (section 3.2) the teacher's soft prediction is averaged over weights and views, and weights of the
    student are now and then set back to the source's. Here that comes before the teacher's average is updated and not
    after it, so that what is set back never enters it.

    The student normalises by its batch, as in any training. The teacher averages the student's running statistics along
    with the weights and predicts with them, since that is how the segmenter will predict.
    """

    def __init__(
        self, student: BasicUNet, source: BasicUNet, task: Task, settings: MeanTeacherSettings, compute: Compute
    ) -> None:
        """Begin with student and teacher alike.

        Args:
            student: learns; changed in place.
            source: whose weights are restored; never changed.
            task: whether images may be turned over.
            settings: how the student learns.
            compute: device and precision.
        """
        self._student = compute.prepare(student).train().requires_grad_(True)
        self._source = compute.prepare(source)
        average = get_ema_multi_avg_fn(settings.momentum)
        self._average = AveragedModel(self._student, multi_avg_fn=average, use_buffers=True)
        self._average.eval().requires_grad_(False)
        self._average.update_parameters(self._student)  # the first update copies; all later ones average
        self.teacher: BasicUNet = self._average.module  # what is kept
        self._optimizer = torch.optim.Adam(self._student.parameters(), settings.learning_rate, fused=True)
        self._task, self._settings, self._compute = task, settings, compute

    def state(self) -> dict[str, Stateful]:
        """Student, its optimizer and its average; the source never changes."""
        return {"student": self._student, "student_optimizer": self._optimizer, "average": self._average}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One step on an unlabelled batch."""
        image = self._compute.to_device(batch.image)
        predicted, part = self._predict(image), sharding.shard(len(image))
        with self._compute.autocast():
            logits = self._student(augment.change_appearance(image, self._settings.appearance)[part])
        loss = F.cross_entropy(logits.float(), predicted[part])
        loop.backward_step(self._optimizer, loss)
        if self._settings.restoration:
            self._restore()
        self._average.update_parameters(self._student)
        return {"consistency": loss.detach()}

    @torch.no_grad()
    def _predict(self, image: Tensor) -> Tensor:
        """(B, K, H, W) probabilities, averaged over the views of (B, C, H, W)."""
        predictions = []
        for number, axes in enumerate(FLIPS[: self._settings.views]):
            turned = axes if self._task.any_orientation else ()
            view = image if number == 0 or turned else augment.change_appearance(image, self._settings.appearance)
            with self._compute.autocast():
                logits = self._average(view.flip(turned))
            predictions.append(torch.softmax(logits.float(), dim=1).flip(turned))
        return torch.stack(predictions).mean(dim=0)

    @torch.no_grad()
    def _restore(self) -> None:
        for weight, source in zip(self._student.parameters(), self._source.parameters(), strict=True):
            chosen = (torch.rand(weight.shape) < self._settings.restoration).to(weight.device)
            weight.copy_(torch.where(chosen, source, weight))


class CoTTA(Method[MeanTeacherSettings]):
    """One segmenter that goes on from site to site: each stage's result is the averaged teacher."""

    Settings = MeanTeacherSettings

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """A student and its average, both from the segmenter as it is; the source segmenter's weights are restored."""
        source, settings = knowledge.source_segmenter, self.settings

        def build() -> MeanTeacherObjective:
            student = copy.deepcopy(knowledge.segmenter)
            return MeanTeacherObjective(student, source, self.task, settings, self.compute)

        learnt = self.fit(build, slices, settings.steps, settings.batch, stage("segmenter"))
        return knowledge.with_domain(domain, segmenter=learnt.teacher)
