"""How the prior over anatomy codes learns, see :mod:`garda.generators.prior`."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from garda import whole_batch
from garda.augment import ImitatedGeometrySettings, draw_motion, move_image
from garda.compute import Compute
from garda.config import Config
from garda.generators.prior import FlowPrior
from garda.slices import Batch
from garda.task import Task
from garda.training import Stateful, averaging, descend, set_rate

WARM_UP = 50  # steps over which the learning rate rises


class PriorLessonSettings(Config):
    """How the prior learns the distribution of anatomy codes.

    Attributes:
        steps: number of steps.
        batch: codes a step.
        learning_rate: the highest; rises over 50 steps, falls to 0 by a cosine.
        average: steps over which weights are averaged.
        geometry: augmentation of the images whose codes are learnt.
    """

    steps: PositiveInt = 1000
    batch: int = Field(default=32, ge=2)
    learning_rate: PositiveFloat = 2e-3
    average: PositiveInt = 100
    geometry: ImitatedGeometrySettings = ImitatedGeometrySettings()


class FromCodes:
    """Learn the distribution of the anatomy codes by flow matching."""

    def __init__(
        self,
        task: Task,
        encoder: nn.Module,
        prior: FlowPrior,
        lesson: PriorLessonSettings,
        compute: Compute,
    ) -> None:
        self._encoder = compute.prepare(encoder).eval()
        self._prior = compute.prepare(prior).train()
        self._average = AveragedModel(self._prior, multi_avg_fn=averaging(lesson.average))
        self._optimizer = torch.optim.AdamW(self._prior.parameters(), lr=lesson.learning_rate, fused=True)
        self._task, self._lesson, self._compute = task, lesson, compute

    @property
    def prior(self) -> FlowPrior:
        """The averaged prior."""
        averaged: FlowPrior = copy.deepcopy(self._average.module)  # type: ignore[assignment]
        return averaged.eval().requires_grad_(False)

    def state(self) -> Mapping[str, Stateful]:
        """Prior, its average and the optimizer."""
        return {"prior": self._prior, "average": self._average, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a batch of images."""
        image = self._compute.place(batch.image)
        motion = draw_motion(len(image), self._lesson.geometry, self._task.any_orientation, image.device)
        with torch.no_grad(), self._compute.autocast():
            part = whole_batch.part(len(image))
            code = self._encoder(self._compute.place(move_image(image, motion)[part]))
        noise = torch.randn(len(image), *code.shape[1:])[part].to(code.device)
        time = torch.sigmoid(torch.randn(len(image))[part]).to(code.device)
        between = noise + (code - noise) * time[:, None, None, None]
        with self._compute.autocast():
            velocity = self._prior(self._compute.place(between), time)
        loss = F.mse_loss(velocity, code - noise)
        set_rate(self._optimizer, self._lesson.learning_rate, step, self._lesson.steps, warm_up=WARM_UP)
        descend(self._optimizer, loss)
        self._average.update_parameters(self._prior)
        return {"flow": loss.detach()}
