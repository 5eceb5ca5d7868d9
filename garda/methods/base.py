"""What every method is: it learns the source, adapts to each target, and keeps nothing but its knowledge."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from garda.core.config import Config
from garda.core.errors import CheckpointError, ConfigError
from garda.core.seeds import derive_seed
from garda.data import calibrate
from garda.data.dataset import Batch, Slices
from garda.data.randomise import RandomisationSettings
from garda.data.task import Task
from garda.data.volume import Volume
from garda.methods.knowledge import Knowledge, domain_state_limit, load_knowledge
from garda.models import ensemble, unet
from garda.models.factorised_training import GeneratorSettings
from garda.models.generator import Generator
from garda.models.objectives import SupervisedObjective, SupervisedTrainingSettings
from garda.models.stopping import HeldOut
from garda.models.unet import SegmenterSettings
from garda.training import loop
from garda.training.cache import Stage, fingerprint
from garda.training.device import Compute, ComputeSettings
from garda.training.loop import O, Phase

CONTRAST_BATCHES = 8  # by which the contrast of labelled images is measured


class SharedSettings(Config):
    """What all methods have in common.

    Attributes:
        compute: device and precision.
        checkpoint_seconds: time between two checkpoints of a phase; decides no result.
        segmenter: architecture.
        source: how the source segmenter learns; all methods start with it, unless their very idea is another start.
        generator: what stands in for images that are gone; the same for all methods that replay but `garda_paper`.
    """

    compute: ComputeSettings = ComputeSettings()
    checkpoint_seconds: float = Field(default=60.0, gt=0, exclude=True)
    segmenter: SegmenterSettings = SegmenterSettings()
    source: SupervisedTrainingSettings = SupervisedTrainingSettings()
    generator: GeneratorSettings = GeneratorSettings()


class TargetTrainingSettings(Config):
    """How long and how fast a segmenter learns an unlabelled target.

    Attributes:
        steps: number of steps.
        batch: images of the target a step.
        learning_rate: the highest.
    """

    steps: PositiveInt = 150
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 5e-4


S = TypeVar("S", bound=Config)
T = TypeVar("T", bound=SupervisedTrainingSettings)


class Method(Generic[S]):
    """Makes :class:`Knowledge` from a labelled source and carries it through unlabelled targets.

    A method sees one domain's training slices at a time, never a test scan, and keeps no file beside its phases'
    checkpoints.

    Attributes:
        Settings: the model of the method's own block in a configuration file.
        reads_target_labels: whether it also sees the targets' labels, as an oracle may.
    """

    Settings: ClassVar[type[Config]] = Config
    reads_target_labels: ClassVar[bool] = False

    def __init__(self, task: Task, shared: SharedSettings, settings: S, compute: Compute) -> None:
        self.task, self.shared, self.settings, self.compute = task, shared, settings, compute

    def learn_source(self, domain: str, slices: Slices, held_out: Slices | None, stage: Stage) -> Knowledge:
        """Learn the labelled source: the segmenter and a copy that stays as it is, both in evaluation mode.

        Args:
            domain: its name.
            slices: labelled; they are learnt from.
            held_out: labelled; they say when learning ends. None where there are too few.
            stage: opens phases.
        """
        plain = self.shared.source.model_copy(update={"randomisation": None})
        network = self.train_segmenter("plain", plain, slices, held_out, stage)
        return self.learn_more(network, domain, slices, held_out, stage)

    def learn_more(
        self, plain: BasicUNet, domain: str, slices: Slices, held_out: Slices | None, stage: Stage
    ) -> Knowledge:
        """What a method makes of the network that has learnt the source's images as they are.

        Under randomisation the segmenter goes on from it: that takes fewer steps than a beginning of its own.
        """
        settings, segmenter = self.source_settings, plain
        if settings.randomisation is not None:
            segmenter = self.train_segmenter("segmenter", settings, slices, held_out, stage, plain)
        return Knowledge(segmenter, copy.deepcopy(segmenter), None, (domain,))

    def train_segmenter(
        self,
        part: str,
        settings: SupervisedTrainingSettings,
        slices: Slices,
        held_out: Slices | None,
        stage: Stage,
        start: BasicUNet | None = None,
    ) -> BasicUNet:
        """A segmenter of the source, learnt in the phase ``part`` or taken from where runs share it.

        Phases of equal name, seed, settings and start give equal networks, whatever the method.

        Args:
            part: of the stage.
            settings: how it learns.
            slices: labelled.
            held_out: labelled; say when learning ends.
            stage: opens the phase.
            start: whose weights learning begins with; None for random ones.
        """

        def learn(phase: Phase) -> BasicUNet:
            suited = self.calibrate_settings(settings, slices, phase)

            def build() -> SupervisedObjective:
                looks = self._hold_out(held_out, suited, phase)
                return SupervisedObjective(self.task, self.shared.segmenter, suited, self.compute, looks, start)

            learnt = self.fit(build, slices, settings.steps, settings.batch, phase, lambda made: made.finished)
            if learnt.held_out is not None and learnt.held_out.measured:
                step, dice = learnt.held_out.measured[-1]
                phase.note({"steps": step, "at_most": settings.steps, "held_out_dice": dice})
            else:
                phase.note({"steps": settings.steps, "at_most": settings.steps})
            return learnt.learnt

        phase = stage(part)
        # the names in the key decide where networks of earlier runs are found
        network_settings, lesson = (each.model_dump(mode="json") for each in (self.shared.segmenter, settings))
        key = {"segmenter": network_settings, "lesson": lesson, "seed": phase.seed}
        if start is not None:
            key["start"] = fingerprint(start)
        network = stage.cache.get_or_train("segmenter", key, phase, self.build_segmenter, learn)
        return self.compute.prepare(network)

    def _hold_out(self, slices: Slices | None, settings: SupervisedTrainingSettings, phase: Phase) -> HeldOut | None:
        if slices is None or settings.stopping is None:
            return None
        seed, classes = derive_seed(phase.seed, "held out"), len(self.task.classes)
        return HeldOut(slices, classes, settings.randomisation, settings.stopping, seed, self.compute)

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Learn one unlabelled target: its name alone, unless a method says so; ``knowledge`` is left as it is."""
        return knowledge.with_domain(domain)

    @property
    def source_settings(self) -> SupervisedTrainingSettings:
        """How the source segmenter learns."""
        return self.shared.source

    def network_for(self, knowledge: Knowledge, domain: str) -> nn.Module:
        """The network that reads a domain's images: one for all domains, unless a method keeps something for each.

        It depends on ``knowledge.segmenter`` and the domain's own ``knowledge.domain_state`` alone.

        Args:
            knowledge: what is known.
            domain: any domain's name, one that has not been met included.
        """
        return knowledge.segmenter

    def reads_equally(self, before: Knowledge, after: Knowledge, domain: str) -> bool:
        """Whether two states of knowledge read a domain with networks that are equal to the bit."""
        if before.segmenter is after.segmenter and before.domain_state.get(domain) is after.domain_state.get(domain):
            return True  # no network needs to be put together to see that
        if self.zoom_for(before, domain) != self.zoom_for(after, domain):
            return False
        old, new = (self.network_for(knowledge, domain).state_dict() for knowledge in (before, after))
        return old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)

    def zoom_for(self, knowledge: Knowledge, domain: str) -> float:
        """The factor by which a domain's images are enlarged before they are read: 1, unless a method says so."""
        return 1.0

    def standardise(self, knowledge: Knowledge, volume: Volume, domain: str) -> Volume:
        """What is done to a whole volume of a domain before it is segmented: :meth:`zoom_for` is noted, no more."""
        return replace(volume, zoom=self.zoom_for(knowledge, domain))

    def slice_network_for(self, knowledge: Knowledge, domain: str) -> nn.Module:
        """As :meth:`network_for`, for (B, C, H, W) slices as they are, which are enlarged and made smaller again."""
        network, zoom = self.network_for(knowledge, domain), self.zoom_for(knowledge, domain)
        return network if zoom == 1 else ensemble.Zoomed(network, zoom).eval()

    def check(self) -> None:
        """Refuse, before anything is learnt, what could only fail hours later.

        Raises:
            ConfigError: settings that do not fit the task.
            CheckpointError: weights that are asked for and cannot be had.
        """

    def check_state(self, key: str, what: str, size: int, remedy: str) -> None:
        """Refuse a setting by which something would take more bytes than a domain may keep.

        Raises:
            ConfigError: names the setting and the bytes.
        """
        limit = domain_state_limit(self.build_segmenter())
        if size > limit:
            raise ConfigError(key, f"{what} would take {size} bytes, more than {limit}", remedy)

    def build_segmenter(self) -> BasicUNet:
        """An untrained segmenter."""
        return unet.build_segmenter(self.task, self.shared.segmenter)

    def build_generator(self) -> Generator | None:
        """An untrained generator that has met no domain; None for methods without one."""
        return None

    def load(self, folder: Path) -> Knowledge:
        """Read knowledge that this method wrote; errors as in :func:`garda.methods.knowledge.load_knowledge`."""
        knowledge = load_knowledge(folder, self.build_segmenter, self.build_generator)
        self.compute.prepare(knowledge.segmenter)
        for domain in knowledge.domains:
            try:
                self.check_kept(knowledge, domain)
            except (RuntimeError, KeyError, ValueError) as error:
                what = f"does not hold what is kept of {domain} ({str(error).splitlines()[0]})"
                raise CheckpointError(folder / "statistics.safetensors", what, "ask for the file again") from None
        return knowledge

    def check_kept(self, knowledge: Knowledge, domain: str) -> None:
        """Refuse a domain whose network cannot be put together from what is kept.

        Raises:
            RuntimeError: a tensor is of another network.
            KeyError: something is missing.
            ValueError: a number means nothing.
        """
        self.network_for(knowledge, domain)

    @staticmethod
    def fit(
        build: Callable[[], O],
        slices: Slices,
        steps: int,
        batch: int,
        phase: Phase,
        finished: Callable[[O], bool] = lambda objective: False,
    ) -> O:
        """An objective trained on batches of one domain's slices, see :func:`garda.training.loop.fit`."""
        return loop.fit(build, lambda step: slices.batch(step, batch, phase.seed), steps, phase, finished)

    def continue_training(self, start: BasicUNet, settings: SupervisedTrainingSettings) -> SupervisedObjective:
        """Supervision that begins with the weights of ``start``, which is left as it is."""
        return SupervisedObjective(self.task, self.shared.segmenter, settings, self.compute, start=start)

    def calibrate_settings(self, settings: T, slices: Slices, phase: Phase) -> T:
        """The settings with no more randomisation than the labelled slices bear, see :meth:`calibrate`."""
        if settings.randomisation is None:
            return settings
        seed = derive_seed(phase.seed, "contrast")
        batches = [slices.batch(step, settings.batch, seed) for step in range(CONTRAST_BATCHES)]
        return settings.model_copy(update={"randomisation": self.calibrate(settings.randomisation, batches, phase)})

    def calibrate(self, full: RandomisationSettings, batches: Sequence[Batch], phase: Phase) -> RandomisationSettings:
        """No more randomisation than labelled batches bear (:mod:`garda.data.calibrate`); the strength is logged."""
        seed = derive_seed(phase.seed, "strength")
        strength = calibrate.calibrate_strength(full, batches, len(self.task.classes), seed)
        phase.log(0, {"randomisation_strength": strength})
        return calibrate.scale_strength(full, strength)
