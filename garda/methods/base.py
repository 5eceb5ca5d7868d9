"""What every method is: two lessons and a promise to keep nothing but its knowledge."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field

from garda.core.config import Config
from garda.core.seeds import derive_seed
from garda.data import calibrate
from garda.data.augment import RandomisationSettings
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.data.volume import Volume
from garda.methods.knowledge import Knowledge, load_knowledge
from garda.models import unet
from garda.models.factorised_training import FactorisedTrainer, GeneratorSettings
from garda.models.generator import Generator, GeneratorTrainer
from garda.models.objectives import SupervisedObjective, SupervisedTrainingSettings
from garda.models.replay import Replay
from garda.models.unet import SegmenterSettings
from garda.training import loop
from garda.training.cache import Stage
from garda.training.device import Compute, ComputeSettings
from garda.training.loop import Phase

SURVEY = 8  # batches by which the source's contrast is measured


class SharedSettings(Config):
    """What all methods have in common.

    Attributes:
        compute: device and precision.
        checkpoint_seconds: time between two checkpoints of a stage; decides no result.
        segmenter: architecture.
        source: how the source segmenter learns; all methods start with it, unless their very idea is another start.
        generator: what stands in for images that are gone; equal for all methods that replay, but `garda_paper`.
    """

    compute: ComputeSettings = ComputeSettings()
    checkpoint_seconds: float = Field(default=60.0, gt=0, exclude=True)
    segmenter: SegmenterSettings = SegmenterSettings()
    source: SupervisedTrainingSettings = SupervisedTrainingSettings()
    generator: GeneratorSettings = GeneratorSettings()


S = TypeVar("S", bound=Config)


class Method(ABC, Generic[S]):
    """Makes :class:`Knowledge` from a labelled source and carries it through unlabelled targets.

    A method sees one domain's training slices at a time, never a test scan, and keeps no file beside its stages'
    checkpoints.

    Attributes:
        Settings: the model of the method's own block in a configuration file.
        reads_target_labels: False; True for a bound that also sees the targets' labels.
    """

    Settings: ClassVar[type[Config]]
    reads_target_labels: ClassVar[bool] = False

    def __init__(self, task: Task, shared: SharedSettings, settings: S, compute: Compute) -> None:
        self.task, self.shared, self.settings, self.compute = task, shared, settings, compute

    def learn_source(self, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Learn the labelled source: the segmenter, unless a method needs more."""
        segmenter, teacher = self.learn_segmenter(slices, stage)
        return Knowledge(segmenter, teacher, None, (domain,))

    @abstractmethod
    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Learn one unlabelled target; ``knowledge`` itself is left as it is."""

    @property
    def source_settings(self) -> SupervisedTrainingSettings:
        """How the source segmenter learns."""
        return self.shared.source

    def network_for(self, knowledge: Knowledge, domain: str) -> BasicUNet:
        """The network that reads a domain's images: one for all domains, unless a method keeps something for each.

        It depends on ``knowledge.segmenter`` and ``knowledge.statistics`` of the domain alone.

        Args:
            knowledge: what is known.
            domain: any domain's name, one that has not been met included.
        """
        return knowledge.segmenter

    def reads_equally(self, before: Knowledge, after: Knowledge, domain: str) -> bool:
        """Whether two states of knowledge read a domain with networks that are equal to the bit."""
        if before.segmenter is after.segmenter and before.domain_state.get(domain) is after.domain_state.get(domain):
            return True  # no network needs to be put together to see that
        old, new = (self.network_for(knowledge, domain).state_dict() for knowledge in (before, after))
        return old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)

    def standardise(self, knowledge: Knowledge, volume: Volume, domain: str) -> Volume:
        """What is done to a whole volume of a domain before it is segmented; nothing, unless a method says so."""
        return volume

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
        """Read knowledge that this method wrote; errors as in :func:`garda.methods.knowledge.load_knowledge`."""
        generator = self.build_generator()
        knowledge = load_knowledge(
            folder,
            lambda: unet.build_segmenter(self.task, self.shared.segmenter),
            None if generator is None else lambda: generator,
        )
        self.compute.prepare(knowledge.segmenter)
        return knowledge

    def learn_segmenter(self, slices: Slices, stage: Stage) -> tuple[BasicUNet, BasicUNet]:
        """The source segmenter and a copy of it that stays as the teacher, both in evaluation mode."""
        settings = self.source_settings

        def learn(phase: Phase) -> BasicUNet:
            suited = self.suit_settings(settings, slices, phase)
            return loop.fit(
                lambda: SupervisedObjective(self.task, self.shared.segmenter, suited, self.compute),
                lambda step: slices.batch(step, settings.batch, phase.seed),
                settings.steps,
                phase,
            ).segmenter

        segmenter = stage.cache.get_or_train(
            "segmenter",
            {"segmenter": self.shared.segmenter.model_dump(mode="json"), "lesson": settings.model_dump(mode="json")},
            stage("segmenter"),
            lambda: unet.build_segmenter(self.task, self.shared.segmenter),
            learn,
        )
        self.compute.prepare(segmenter)
        return segmenter, copy.deepcopy(segmenter)

    def suit_settings(
        self, settings: SupervisedTrainingSettings, slices: Slices, phase: Phase
    ) -> SupervisedTrainingSettings:
        """A lesson with no more randomisation than its labelled slices bear, see :meth:`suit`."""
        if settings.randomisation is None:
            return settings
        seed = derive_seed(phase.seed, "contrast")
        batches = [slices.batch(step, settings.batch, seed) for step in range(SURVEY)]
        return settings.model_copy(update={"randomisation": self.suit(settings.randomisation, batches, phase)})

    def suit(
        self, randomisation: RandomisationSettings, batches: Sequence[Batch], phase: Phase
    ) -> RandomisationSettings:
        """No more randomisation than labelled batches bear (:mod:`garda.data.calibrate`); the strength is logged."""
        seed = derive_seed(phase.seed, "strength")
        strength = calibrate.calibrate_strength(randomisation, batches, len(self.task.classes), seed)
        phase.log(0, {"randomisation_strength": strength})
        return calibrate.scale_strength(randomisation, strength)


class ReplayMethod(Method[S]):
    """A method with a generator, the shared settings' one unless it has a recipe of its own.

    Attributes:
        shares_generator: whether the shared settings' generator is its own.
    """

    shares_generator: ClassVar[bool] = True

    @property
    def recipe(self) -> GeneratorTrainer:
        """How the generator learns."""
        return FactorisedTrainer(self.task, self.shared.generator, self.compute)

    def check(self) -> None:
        """Refuse a generator that does not fit the task, and weights that cannot be had."""
        self.recipe.check(unet.build_segmenter(self.task, self.shared.segmenter))

    def build_generator(self) -> Generator:
        """An untrained generator."""
        return self.recipe.build()

    def learn_source(self, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Segmenter from labels, then the generator."""
        segmenter, teacher = self.learn_segmenter(slices, stage)
        generator = self.recipe.learn_source(domain, slices, stage, teacher)
        return Knowledge(segmenter, teacher, generator, (domain,))

    def draw_pool(self, knowledge: Knowledge, anatomies: int) -> Replay:
        """Anatomies to replay, drawn from torch's global generator.

        Raises:
            TypeError: knowledge of a method without a generator.
        """
        if knowledge.generator is None:
            raise TypeError("replay needs a generator")
        return Replay(
            knowledge.generator, self.compute.prepare(knowledge.source_segmenter).eval(), anatomies, self.compute
        )


class Oracle(Method[S]):
    """A method outside the contract, for comparison only: it sees the images of all domains met so far at once."""

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Not for a bound, which needs the earlier domains too."""
        raise TypeError("a bound adapts jointly")

    @abstractmethod
    def adapt_jointly(self, knowledge: Knowledge, slices: Mapping[str, Slices], stage: Stage) -> Knowledge:
        """Learn from the training slices of every domain met; the last of ``slices`` is the new one."""
