"""A bound: what the targets' labels would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import PositiveInt

from garda.config import Config
from garda.knowledge import Knowledge
from garda.lessons import continue_lesson, mix
from garda.methods.base import Bound, Stages
from garda.slices import Slices
from garda.training import fit


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
        segmenter = fit(
            lambda: continue_lesson(knowledge.segmenter, self.task, self.shared.segmenter, lesson, self.compute),
            lambda step: mix(slices, step, lesson.batch, stage.seed),
            lesson.steps,
            stage,
        ).segmenter
        return replace(knowledge, segmenter=segmenter.eval().requires_grad_(False), domains=tuple(slices))
