"""Oracles, outside the contract: what all images at once, or the labels of the targets, would give."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from pydantic import Field, PositiveInt
from torch import Tensor

from garda.core.config import Config
from garda.data import dataset
from garda.data.dataset import Batch, Slices
from garda.methods.base import Method, S
from garda.methods.cotta import MeanTeacherObjective, MeanTeacherSettings
from garda.methods.knowledge import Knowledge
from garda.models.objectives import SupervisedObjective
from garda.training import loop
from garda.training.cache import Stage
from garda.training.loop import Stateful


class Oracle(Method[S], ABC):
    """A method outside the contract, for comparison only: it sees the images of all domains met so far at once."""

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Not for an oracle, which needs the earlier domains too.

        Raises:
            TypeError: always.
        """
        raise TypeError("an oracle adapts jointly")

    @abstractmethod
    def adapt_jointly(self, knowledge: Knowledge, slices: Mapping[str, Slices], stage: Stage) -> Knowledge:
        """Learn from the training slices of every domain met; the last of ``slices`` is the new one."""


class JointSettings(MeanTeacherSettings):
    """How the targets are learnt; nothing need be restored while the source is at hand.

    Attributes:
        steps: number of steps on the source's labels, and as many on the targets' images.
    """

    steps: PositiveInt = 200
    restoration: float = Field(default=0.0, ge=0, le=1)


class JointObjective:
    """Two objectives of one network, which take turns: the source's labels, then the targets' images."""

    def __init__(self, labels: SupervisedObjective, consistency: MeanTeacherObjective) -> None:
        """Both objectives change the same network, each with its own optimizer."""
        self.labels, self.consistency = labels, consistency

    def state(self) -> Mapping[str, Stateful]:
        """Everything that changes in either objective."""
        return {**self.labels.state(), **self.consistency.state()}

    def step(self, batch: tuple[Batch, Batch], step: int) -> Mapping[str, Tensor]:
        """One step of each, on (labelled slices of the source, unlabelled slices of all targets met)."""
        return {**self.labels.step(batch[0], step), **self.consistency.step(batch[1], step)}


class Joint(Oracle[JointSettings]):
    """From the source segmenter, at every stage anew: labels where there are any, a mean teacher where not.

    This is what a method could do that may keep every image.
    """

    Settings = JointSettings

    def adapt_jointly(self, knowledge: Knowledge, slices: Mapping[str, Slices], stage: Stage) -> Knowledge:
        """Source and all targets met, each target with an equal share of the unlabelled slices."""
        phase, settings, start = stage("segmenter"), self.settings, knowledge.source_segmenter
        (_, source), *others = slices.items()
        labelled = self.source_settings.model_copy(update={"steps": settings.steps, "decay": True, "warm_up": 0})
        labelled = self.calibrate_settings(labelled, source, phase)

        def build() -> JointObjective:
            labels = self.continue_training(start, labelled)
            consistency = MeanTeacherObjective(labels.segmenter, start, self.task, settings, self.compute)
            return JointObjective(labels, consistency)

        def batch(step: int) -> tuple[Batch, Batch]:
            targets = dataset.mix(dict(others), step, settings.batch, phase.seed)
            return source.batch(step, labelled.batch, phase.seed), targets

        segmenter = loop.fit(build, batch, settings.steps, phase).consistency.teacher
        return replace(knowledge, segmenter=segmenter, domains=tuple(slices))


class SupervisedSettings(Config):
    """How much is learnt at a target; everything else is as in the source's training.

    Attributes:
        steps: number of steps.
    """

    steps: PositiveInt = 300


class Supervised(Oracle[SupervisedSettings]):
    """The source's training goes on with labelled slices of all domains met, in equal shares."""

    Settings = SupervisedSettings
    reads_target_labels = True

    def adapt_jointly(self, knowledge: Knowledge, slices: Mapping[str, Slices], stage: Stage) -> Knowledge:
        """The segmenter as it is learns from all labels, from images in their own styles: without randomisation."""
        phase = stage("segmenter")
        changes = {"steps": self.settings.steps, "decay": True, "warm_up": 0, "randomisation": None}
        settings = self.source_settings.model_copy(update=changes)

        def batch(step: int) -> Batch:
            return dataset.mix(slices, step, settings.batch, phase.seed)

        learnt = loop.fit(lambda: self.continue_training(knowledge.segmenter, settings), batch, settings.steps, phase)
        return replace(knowledge, segmenter=learnt.learnt.eval().requires_grad_(False), domains=tuple(slices))
