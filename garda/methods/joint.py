"""A bound: the images of all domains at once, the targets' without labels (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from monai.networks.nets import BasicUNet
from pydantic import Field, PositiveInt
from torch import Tensor

from garda.knowledge import Knowledge
from garda.lessons import FromTeacher, TeacherLessonSettings, continue_lesson, mix
from garda.methods.base import Bound, Stages
from garda.segmenter import FromLabels
from garda.slices import Batch, Slices
from garda.training import Stateful, fit


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
            labels = continue_lesson(start, self.task, self.shared.segmenter, labelled, self.compute)
            return Together(labels, FromTeacher(labels.segmenter, start, self.task, lesson, self.compute))

        def batch(step: int) -> Images:
            targets = mix(dict(others), step, lesson.batch, stage.seed)
            return Images(source.batch(step, labelled.batch, stage.seed), targets)

        segmenter = fit(build, batch, lesson.steps, stage).teacher
        return replace(knowledge, segmenter=segmenter, domains=tuple(slices))
