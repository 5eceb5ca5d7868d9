"""What every method is: two lessons and a promise to keep nothing but its knowledge."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from monai.networks.nets import BasicUNet
from pydantic import Field

from garda.compute import Compute, ComputeSettings
from garda.config import Config
from garda.generators.base import Generator
from garda.knowledge import Knowledge, load_knowledge
from garda.segmenter import FromLabels, LabelLessonSettings, SegmenterSettings, build_segmenter
from garda.slices import Slices
from garda.task import Task
from garda.training import Stage, fit

__all__ = ["Knowledge", "Method", "SharedSettings", "Stages"]

Stages = Callable[[str], Stage]  # "segmenter" -> the stage of that name, seeded and with its own folder


class SharedSettings(Config):
    """What all methods have in common.

    Attributes:
        compute: device and precision.
        checkpoint_seconds: time between two checkpoints of a stage; decides no result.
        segmenter: architecture.
        source: how the source segmenter learns; equal for all methods, so that they share its result.
    """

    compute: ComputeSettings = ComputeSettings()
    checkpoint_seconds: float = Field(default=60.0, gt=0, exclude=True)
    segmenter: SegmenterSettings = SegmenterSettings()
    source: LabelLessonSettings = LabelLessonSettings()


S = TypeVar("S", bound=Config)


class Method(ABC, Generic[S]):
    """Makes :class:`Knowledge` from a labelled source and carries it through unlabelled targets.

    A method sees one domain's training slices at a time, never a test scan, and keeps no file beside its stages'
    checkpoints.

    Attributes:
        Settings: the model of the method's own block in a configuration file.
    """

    Settings: ClassVar[type[Config]]

    def __init__(self, task: Task, shared: SharedSettings, settings: S, compute: Compute) -> None:
        self.task, self.shared, self.settings, self.compute = task, shared, settings, compute

    @abstractmethod
    def learn_source(self, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Learn the labelled source."""

    @abstractmethod
    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Learn one unlabelled target; ``knowledge`` itself is left as it is."""

    def check(self) -> None:
        """Refuse, before anything is learnt, what could only fail hours later.

        Raises:
            ConfigError: settings that do not fit the task.
            CheckpointError: weights that are asked for and cannot be had.
        """

    def build_generator(self) -> Generator | None:
        """An untrained generator that has met no domain; None for methods without one."""
        return None

    def load(self, folder: Path) -> Knowledge:
        """Read knowledge that this method wrote; errors as in :func:`garda.knowledge.load_knowledge`."""
        generator = self.build_generator()
        knowledge = load_knowledge(
            folder,
            lambda: build_segmenter(self.task, self.shared.segmenter),
            None if generator is None else lambda: generator,
        )
        self.compute.prepare(knowledge.segmenter)
        return knowledge

    def learn_segmenter(self, slices: Slices, stages: Stages) -> tuple[BasicUNet, BasicUNet]:
        """The source segmenter and a copy of it that stays as the teacher, both in evaluation mode."""
        stage, lesson = stages("segmenter"), self.shared.source
        learnt = fit(
            lambda: FromLabels(self.task, self.shared.segmenter, lesson, self.compute),
            lambda step: slices.batch(step, lesson.batch, stage.seed),
            lesson.steps,
            stage,
        )
        segmenter = learnt.segmenter.eval().requires_grad_(False)
        return segmenter, copy.deepcopy(segmenter)
