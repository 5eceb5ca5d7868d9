"""A target's lesson: an adapter learns the answers that networks give on average over many views.

The teacher does not follow the student, which would let both drift; that its answers are averages over turned, scaled
and shifted images (as at test time in nnU-Net, Isensee et al., Nature Methods 18, 2021) is what there is to learn.
"""

import copy
from collections.abc import Mapping

import torch
from monai.losses import DiceLoss
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from garda.core.config import Config
from garda.data import augment
from garda.data.augment import AppearanceSettings, GeometrySettings
from garda.data.task import Task
from garda.models import adapter, reading
from garda.training import loop, sharding
from garda.training.device import Compute
from garda.training.loop import Stateful

PART = 16  # slices computed at once
MOTION = GeometrySettings(shift=0.1)  # of slice and answer
APPEARANCE = AppearanceSettings(gamma=1.2, contrast=0.1, brightness=0.04, noise=0.02)  # of what the student sees


class LessonSettings(Config):
    """How an adapter learns a target.

    Attributes:
        enough: agreement over views from which a target needs no lesson.
        gain: by how much an adapter must agree better than what it began with.
        steps: 0 for no lesson anywhere.
        batch: slices a step.
        learning_rate: the highest, of AdamW; falls to 0 by a cosine.
        average: steps over which weights are averaged.
        pool: slices that are learnt from.
        views: over which answers are averaged, beside the slice as it is.
    """

    enough: float = Field(default=0.95, ge=0, le=1)
    gain: float = Field(default=0.01, ge=0, le=1)
    steps: NonNegativeInt = 120
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 5e-4
    average: PositiveInt = 33
    pool: PositiveInt = 192
    views: NonNegativeInt = 6


class LessonObjective:
    """Cross entropy and soft Dice against a fixed teacher's answers; only the student's adapter learns.

    Normalisation keeps its running statistics and learns scales and shifts alone: sites differ not only in the scanner
    but also in how much of an image is object, and statistics of the target would take the one for the other.
    """

    def __init__(
        self,
        student: BasicUNet,
        teacher: nn.Module,
        image: Tensor,
        task: Task,
        settings: LessonSettings,
        compute: Compute,
    ) -> None:
        """Ask the teacher for all answers; its views are drawn from torch's global generator.

        Args:
            student: what learning begins with; left as it is.
            teacher: in evaluation mode.
            image: (B, C, H, W) of the target in [0, 1].
            task: whether images of any orientation are alike.
            settings: how to learn.
            compute: device and precision.
        """
        self._student = adapter.mark_only_adapter_trainable(compute.prepare(copy.deepcopy(student)).eval())
        self._average = AveragedModel(self._student, multi_avg_fn=loop.ema(settings.average), use_buffers=True)
        self._average.eval().requires_grad_(False)
        self._average.update_parameters(self._student)  # the first update copies
        learnt = [parameter for parameter in self._student.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(learnt, settings.learning_rate, weight_decay=1e-4, fused=True)
        self._dice = DiceLoss(include_background=False)
        self._task, self._settings, self._compute = task, settings, compute
        parts = [self._ask(teacher, part) for part in image.split(PART)]
        self._image, self._answer = image, torch.cat(parts)

    def state(self) -> Mapping[str, Stateful]:
        """Student, its average and the optimizer; the answers follow from the phase's seed."""
        return {"student": self._student, "average": self._average, "optimizer": self._optimizer}

    @property
    def own(self) -> dict[str, Tensor]:
        """The averaged adapter: weights by name, (O, I, 3, 3) and the like; see :mod:`garda.models.adapter`."""
        return adapter.adapter_state_dict(self._average.module)

    def step(self, batch: None, step: int) -> Mapping[str, Tensor]:
        """One step on (batch, C, H, W) slices of the pool; gives the loss, a scalar."""
        settings = self._settings
        chosen = torch.randint(len(self._image), (settings.batch,))
        image, answer = (self._compute.to_device(each[chosen]) for each in (self._image, self._answer))
        motion = augment.draw_affine(len(image), MOTION, self._task.any_orientation, image.device)
        image, answer = augment.warp(image, motion), augment.warp(answer, motion)
        image = augment.change_appearance(image, APPEARANCE)
        part = sharding.shard(len(image))
        with self._compute.autocast():
            logits = self._student(self._compute.to_device(image[part])).float()
        loss = F.cross_entropy(logits, answer[part]) + self._dice(torch.softmax(logits, dim=1), answer[part])
        loop.cosine_lr(self._optimizer, settings.learning_rate, step, settings.steps)
        loop.backward_step(self._optimizer, loss)
        self._average.update_parameters(self._student)
        return {"answers": loss.detach()}

    @torch.no_grad()
    def _ask(self, teacher: nn.Module, image: Tensor) -> Tensor:
        """(B, K, H, W) probabilities, the mean over views."""
        found = self._probabilities(teacher, image)
        for _ in range(self._settings.views):
            motion = augment.draw_affine(len(image), reading.VIEWS, self._task.any_orientation, image.device)
            found = found + augment.warp(
                self._probabilities(teacher, augment.warp(image, motion)), reading.invert(motion)
            )
        return found / (1 + self._settings.views)

    def _probabilities(self, teacher: nn.Module, image: Tensor) -> Tensor:
        with self._compute.autocast():
            return torch.softmax(teacher(self._compute.to_device(image)).float(), dim=1).cpu()
