"""Bounds, outside the contract: what all images at once, or the labels of the targets, would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from monai.networks.nets import BasicUNet
from pydantic import Field, PositiveInt
from torch import Tensor

from garda.core.config import Config
from garda.data import dataset
from garda.data.dataset import Batch, Slices
from garda.methods.base import Bound
from garda.methods.cotta import FromTeacher, TeacherLessonSettings
from garda.methods.knowledge import Knowledge
from garda.models import objectives
from garda.models.objectives import FromLabels
from garda.training import loop
from garda.training.cache import Stages
from garda.training.loop import Stateful


class JointSettings(TeacherLessonSettings):
    """The targets' lesson, in which nothing need be restored while the source is at hand.

    Attributes:
        steps: number of steps on the source's labels, and as many on the targets' images.
    """

    steps: PositiveInt = 200
    restoration: float = Field(default=0.0, ge=0, le=1)


class Images(NamedTuple):
    """What a step reads: labelled slices of the source, unlabelled ones of all targets met."""

    source: Batch
    targets: Batch


class Together:
    """Two lessons for one network, which take turns: the source's labels, then the targets' images."""

    def __init__(self, labels: FromLabels, consistency: FromTeacher) -> None:
        """Both lessons change the same network, each with its own optimizer."""
        self._labels, self._consistency = labels, consistency

    @property
    def teacher(self) -> BasicUNet:
        """The network's average: what is kept."""
        return self._consistency.teacher

    def state(self) -> Mapping[str, Stateful]:
        """Everything that changes in either lesson."""
        return {**self._labels.state(), **self._consistency.state()}

    def step(self, batch: Images, step: int) -> Mapping[str, Tensor]:
        """One step of each."""
        return {**self._labels.step(batch.source, step), **self._consistency.step(batch.targets, step)}


class Joint(Bound[JointSettings]):
    """From the source segmenter, at every stage anew: labels where there are any, a mean teacher where not.

    What a method that may keep every image could do; outside the contract.
    """

    Settings = JointSettings

    def adapt_jointly(self, knowledge: Knowledge, slices: Mapping[str, Slices], stages: Stages) -> Knowledge:
        """Source and all targets met, each target with an equal share of the unlabelled slices."""
        stage, lesson, start = stages("segmenter"), self.settings, knowledge.teacher
        (_, source), *others = slices.items()
        labelled = self.source_lesson.model_copy(update={"steps": lesson.steps})
        labelled = self.suit_lesson(labelled, source, stage)

        def build() -> Together:
            labels = objectives.continue_lesson(start, self.task, self.shared.segmenter, labelled, self.compute)
            return Together(labels, FromTeacher(labels.segmenter, start, self.task, lesson, self.compute))

        def batch(step: int) -> Images:
            targets = dataset.mix(dict(others), step, lesson.batch, stage.seed)
            return Images(source.batch(step, labelled.batch, stage.seed), targets)

        segmenter = loop.fit(build, batch, lesson.steps, stage).teacher
        return replace(knowledge, segmenter=segmenter, domains=tuple(slices))


class SupervisedSettings(Config):
    """How much is learnt at a target; everything else is as in the source's lesson.

    Attributes:
        steps: number of steps.
    """

    steps: PositiveInt = 300


class Supervised(Bound[SupervisedSettings]):
    """The source's lesson goes on with labelled slices of all domains met, in equal shares; outside the contract."""

    Settings = SupervisedSettings
    reads_target_labels = True

    def adapt_jointly(self, knowledge: Knowledge, slices: Mapping[str, Slices], stages: Stages) -> Knowledge:
        """The segmenter as it is, taught by everyone's labels, in their own looks: without randomisation."""
        stage = stages("segmenter")
        lesson = self.source_lesson.model_copy(update={"steps": self.settings.steps, "randomisation": None})
        segmenter = loop.fit(
            lambda: objectives.continue_lesson(
                knowledge.segmenter, self.task, self.shared.segmenter, lesson, self.compute
            ),
            lambda step: dataset.mix(slices, step, lesson.batch, stage.seed),
            lesson.steps,
            stage,
        ).segmenter
        return replace(knowledge, segmenter=segmenter.eval().requires_grad_(False), domains=tuple(slices))
