"""GarDA as published: generative appearance replay (Chen et al., Medical Image Analysis 89, 102924, 2023)."""

from __future__ import annotations

import copy

from garda.data.dataset import Slices
from garda.methods.base import ReplayMethod
from garda.methods.knowledge import Knowledge
from garda.models.objectives import DistillationObjective, DistillationSettings
from garda.models.stylegan import StyleGenerator
from garda.models.stylegan_training import StyleGanTrainer, StyleGanTrainerSettings
from garda.training import loop
from garda.training.cache import Stage


class GardaPaperSettings(StyleGanTrainerSettings):
    """The recipe: the published generator's, and how the segmenter learns from it.

    Attributes:
        replay: how the segmenter learns a target.
    """

    replay: DistillationSettings = DistillationSettings()


class GardaPaper(ReplayMethod[GardaPaperSettings]):
    """Learn looks with a generator; teach the segmenter on replayed images alone."""

    Settings = GardaPaperSettings
    shares_generator = False

    @property
    def recipe(self) -> StyleGanTrainer:
        """How the generator learns."""
        return StyleGanTrainer(self.task, self.settings, self.compute)

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Generator from the target's look, then segmenter from replayed images of all domains seen."""
        previous, teacher = knowledge.generator, knowledge.source_segmenter
        if not isinstance(previous, StyleGenerator):
            raise TypeError("garda_paper adapts a StyleGenerator")
        generator = self.recipe.learn_style(previous, domain, slices, stage, teacher)
        replay = self.settings.replay
        learnt = loop.fit(
            lambda: DistillationObjective(copy.deepcopy(knowledge.segmenter), teacher, generator, replay, self.compute),
            lambda step: None,
            replay.steps,
            stage("segmenter"),
        )
        segmenter = learnt.segmenter.eval().requires_grad_(False)
        return Knowledge(segmenter, teacher, generator, (*knowledge.domains, domain), knowledge.domain_state)
