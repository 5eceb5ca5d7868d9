"""A method with a generator, which draws what may not be kept."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from monai.networks.nets import BasicUNet

from garda.data.dataset import Slices
from garda.methods.base import Method, S
from garda.methods.knowledge import Knowledge
from garda.models.factorised_training import FactorisedTrainer
from garda.models.generator import Generator, GeneratorTrainer
from garda.models.objectives import DistillationObjective, DistillationSettings
from garda.models.replay import Replay
from garda.training import loop
from garda.training.cache import Stage
from garda.training.loop import Phase


class ReplayMethod(Method[S]):
    """A method with a generator, the shared settings' one unless it has a trainer of its own.

    Attributes:
        shares_generator: whether the shared settings' generator is its own.
    """

    shares_generator: ClassVar[bool] = True

    @property
    def trainer(self) -> GeneratorTrainer:
        """How the generator learns."""
        return FactorisedTrainer(self.task, self.shared.generator, self.compute)

    def check(self) -> None:
        """Refuse a generator that does not fit the task, and weights that cannot be had."""
        self.trainer.check(self.build_segmenter())

    def build_generator(self) -> Generator:
        """An untrained generator."""
        return self.trainer.build()

    def learn_more(
        self, plain: BasicUNet, domain: str, slices: Slices, held_out: Slices | None, stage: Stage
    ) -> Knowledge:
        """Segmenter from labels, then the generator."""
        knowledge = super().learn_more(plain, domain, slices, held_out, stage)
        generator = self.trainer.learn_source(domain, slices, stage, knowledge.source_segmenter)
        return replace(knowledge, generator=generator)

    def draw_pool(self, knowledge: Knowledge, anatomies: int) -> Replay:
        """Anatomies to replay, drawn from torch's global generator.

        Raises:
            TypeError: knowledge of a method without a generator.
        """
        if knowledge.generator is None:
            raise TypeError("replay needs a generator")
        source = self.compute.prepare(knowledge.source_segmenter).eval()
        return Replay(knowledge.generator, source, anatomies, self.compute)

    def distil(
        self, knowledge: Knowledge, show: Callable[[], Generator], settings: DistillationSettings, phase: Phase
    ) -> BasicUNet:
        """The segmenter after training on images that the generator of ``show`` replays (GarDA, section 3.4)."""
        source = knowledge.source_segmenter

        def build() -> DistillationObjective:
            return DistillationObjective(copy.deepcopy(knowledge.segmenter), source, show(), settings, self.compute)

        learnt = loop.fit(build, lambda step: None, settings.steps, phase)
        return learnt.segmenter.eval().requires_grad_(False)
