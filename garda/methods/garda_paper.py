"""GarDA as published: the segmenter learns from images that a generator replays in the styles of all domains.

Chen et al., "Generative appearance replay for continual unsupervised domain adaptation", Medical Image Analysis 89,
102924, 2023.
"""

from garda.data.dataset import Slices
from garda.methods.knowledge import Knowledge
from garda.methods.replay_method import ReplayMethod
from garda.models.objectives import DistillationSettings
from garda.models.stylegan import StyleGenerator
from garda.models.stylegan_training import StyleGanTrainer, StyleGanTrainerSettings
from garda.training.cache import Stage


class GardaPaperSettings(StyleGanTrainerSettings):
    """The published generator, and how the segmenter learns from it.

    Attributes:
        replay: how the segmenter learns a target.
    """

    replay: DistillationSettings = DistillationSettings()


class GardaPaper(ReplayMethod[GardaPaperSettings]):
    """The generator learns styles; the segmenter learns from replayed images alone."""

    Settings = GardaPaperSettings
    shares_generator = False

    @property
    def trainer(self) -> StyleGanTrainer:
        """How the generator learns."""
        return StyleGanTrainer(self.task, self.settings, self.compute)

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """The generator from the target's images, then the segmenter from replayed images of all domains met."""
        if not isinstance(knowledge.generator, StyleGenerator):
            raise TypeError("garda_paper adapts a StyleGenerator")
        generator = self.trainer.learn_style(knowledge.generator, domain, slices, stage, knowledge.source_segmenter)
        segmenter = self.distil(knowledge, lambda: generator, self.settings.replay, stage("segmenter"))
        return knowledge.with_domain(domain, segmenter=segmenter, generator=generator)
