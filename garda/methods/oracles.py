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
from garda.methods.base import Oracle
from garda.methods.cotta import MeanTeacherObjective, MeanTeacherSettings
from garda.methods.knowledge import Knowledge
from garda.models import objectives
from garda.models.objectives import SupervisedObjective
from garda.training import loop
from garda.training.cache import Stage
from garda.training.loop import Stateful


class JointSettings(MeanTeacherSettings):
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


class JointObjective:
    """Two lessons for one network, which take turns: the source's labels, then the targets' images."""

    def __init__(self, labels: SupervisedObjective, consistency: MeanTeacherObjective) -> None:
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


class Joint(Oracle[JointSettings]):
    """From the source segmenter, at every stage anew: labels where there are any, a mean teacher where not.

    What a method that may keep every image could do; outside the contract.
    """

    Settings = JointSettings

    def adapt_jointly(self, knowledge: Knowledge, slices: Mapping[str, Slices], stage: Stage) -> Knowledge:
        """Source and all targets met, each target with an equal share of the unlabelled slices."""
        phase, settings, start = stage("segmenter"), self.settings, knowledge.source_segmenter
        (_, source), *others = slices.items()
        labelled = self.source_settings.model_copy(update={"steps": settings.steps})
        labelled = self.suit_settings(labelled, source, phase)

        def build() -> JointObjective:
            labels = objectives.continue_training(start, self.task, self.shared.segmenter, labelled, self.compute)
            return JointObjective(
                labels, MeanTeacherObjective(labels.segmenter, start, self.task, settings, self.compute)
            )

        def batch(step: int) -> Images:
            targets = dataset.mix(dict(others), step, settings.batch, phase.seed)
            return Images(source.batch(step, labelled.batch, phase.seed), targets)

        segmenter = loop.fit(build, batch, settings.steps, phase).teacher
        return replace(knowledge, segmenter=segmenter, domains=tuple(slices))


class SupervisedSettings(Config):
    """How much is learnt at a target; everything else is as in the source's lesson.

    Attributes:
        steps: number of steps.
    """

    steps: PositiveInt = 300


class Supervised(Oracle[SupervisedSettings]):
    """The source's lesson goes on with labelled slices of all domains met, in equal shares; outside the contract."""

    Settings = SupervisedSettings
    reads_target_labels = True

    def adapt_jointly(self, knowledge: Knowledge, slices: Mapping[str, Slices], stage: Stage) -> Knowledge:
        """The segmenter as it is, taught by everyone's labels, in their own looks: without randomisation."""
        phase = stage("segmenter")
        settings = self.source_settings.model_copy(update={"steps": self.settings.steps, "randomisation": None})
        segmenter = loop.fit(
            lambda: objectives.continue_training(
                knowledge.segmenter, self.task, self.shared.segmenter, settings, self.compute
            ),
            lambda step: dataset.mix(slices, step, settings.batch, phase.seed),
            settings.steps,
            phase,
        ).segmenter
        return replace(knowledge, segmenter=segmenter.eval().requires_grad_(False), domains=tuple(slices))
