"""garda: one frozen backbone, a small adapter for each domain, and a generator in place of images that are gone.

The method follows generative appearance replay (Chen et al., Medical Image Analysis 89, 102924, 2023; published form:
:mod:`garda.methods.garda_paper`) and goes about it in four parts:

- *Backbone*: the segmenter learns the labelled source under randomised appearance, and never changes again.
- *Adapters*: normalisation and first layers of the segmenter, one set for each domain (:mod:`garda.models.adapter`).
  Nothing that is learnt later touches an earlier domain's.
- *Generator*: draws labelled anatomies of the source in the style of any domain met; of a target, it learns the style
  (:mod:`garda.models.factorised`).
- *Objective*: a target's adapter learns from replayed anatomies in the target's style, with their labels, and from the
  target's real images, for which its own average predicts (:class:`AdapterObjective`).
"""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from monai.losses import DiceLoss
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from garda.core.config import Config
from garda.core.seeds import derive_seed
from garda.data import augment
from garda.data.augment import AppearanceSettings, GeometrySettings, RandomisationSettings
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.methods.base import CONTRAST_BATCHES, ReplayMethod, TargetTrainingSettings
from garda.methods.knowledge import Knowledge
from garda.models import adapter, choice
from garda.models.choice import Candidate
from garda.models.objectives import SupervisedObjective, SupervisedTrainingSettings
from garda.models.replay import Replay
from garda.training import distributed, loop, sharding
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import Stateful


class StudentRandomisation(RandomisationSettings):
    """How far the student's images are randomised; see :class:`garda.data.augment.RandomisationSettings`."""

    probability: float = Field(default=0.5, ge=0, le=1)


class AdapterTrainingSettings(TargetTrainingSettings):
    """How the adapter of an unlabelled target learns.

    Attributes:
        steps: number of steps.
        batch: replayed images a step, and as many real ones.
        learning_rate: the highest, of AdamW; falls to 0 by a cosine.
        candidates: how many times the averaged adapter is put aside, at equal distances, the last step included;
            among several, label-free scores choose.
        average: steps over which weights are averaged; the average predicts for real images, and is what is kept.
        anatomies: size of the pool from which replayed anatomies are taken.
        replay: weight of the loss on replayed images.
        real: weight of the loss on real images.
        geometry: augmentation of image and label.
        randomisation: of the images that the student sees.
        appearance: plain augmentation, after it.
    """

    learning_rate: PositiveFloat = 1e-3
    candidates: PositiveInt = 1
    average: PositiveInt = 33
    anatomies: PositiveInt = 512
    replay: NonNegativeFloat = 1.0
    real: NonNegativeFloat = 1.0
    geometry: GeometrySettings = GeometrySettings()
    randomisation: StudentRandomisation = StudentRandomisation()
    appearance: AppearanceSettings = AppearanceSettings()


class Snapshots(dict[int, dict[str, Tensor]]):
    """Adapters that were put aside during training, by step; part of a checkpoint."""

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """All of them."""
        return dict(self)

    def load_state_dict(self, state_dict: dict[int, dict[str, Tensor]]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.update(state_dict)


class AdapterObjective:
    """Learn an unlabelled target's adapter from replayed images with their labels, and from its real images.

    L = replay L_seg(replayed anatomies in the target's style, their labels) + real L_seg(real images, predictions),
    where L_seg is cross entropy and soft Dice against soft labels. For a real image the student's own average predicts,
    on the unchanged image (mean teacher, Tarvainen and Valpola, NeurIPS 2017). The student sees both kinds moved and
    randomised.

    Normalisation keeps the running statistics of the source's training, and learns its scales and shifts alone. Sites
    differ not only in the scanner but also in how much of an image is object or background; statistics of the target's
    images would take the one for the other.
    """

    def __init__(
        self, student: BasicUNet, replay: Replay, task: Task, settings: AdapterTrainingSettings, compute: Compute
    ) -> None:
        """Prepare the student, of which only the adapter learns.

        Args:
            student: what learning begins with; left as it is.
            replay: its generator has the target as its last domain.
            task: what is segmented.
            settings: how the adapter learns.
            compute: device and precision.
        """
        self._student = adapter.mark_only_adapter_trainable(compute.prepare(copy.deepcopy(student)).eval())
        self._average = AveragedModel(self._student, multi_avg_fn=loop.ema(settings.average), use_buffers=True)
        self._average.eval().requires_grad_(False)
        self._average.update_parameters(self._student)  # the first update copies
        learnt = [parameter for parameter in self._student.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(learnt, settings.learning_rate, weight_decay=1e-4, fused=True)
        self._dice = DiceLoss(include_background=False)
        self._task, self._settings, self._compute = task, settings, compute
        self.replay, self.snapshots = replay, Snapshots()

    def state(self) -> Mapping[str, Stateful]:
        """Student, its average, the optimizer and what was put aside; the pool follows from the phase's seed."""
        networks = {"student": self._student, "average": self._average}
        return {**networks, "optimizer": self._optimizer, "shares": self.snapshots}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a batch of the target's images."""
        settings, real = self._settings, self._compute.to_device(batch.image)
        replayed, label = self.replay.batch(settings.batch, len(self.replay.generator.domains) - 1)
        with torch.no_grad(), self._compute.autocast():
            predicted = torch.softmax(self._average(real).float(), dim=1)
        image, label = torch.cat([replayed, real]), torch.cat([label, predicted])
        motion = augment.draw_affine(len(image), settings.geometry, self._task.any_orientation, image.device)
        image, label = augment.warp(image, motion), augment.warp(label, motion)
        image = augment.randomise_appearance(image, settings.randomisation)
        image = augment.change_appearance(image, settings.appearance)
        part = sharding.shard(len(replayed), len(real))
        loop.cosine_lr(self._optimizer, settings.learning_rate, step, settings.steps)
        with self._compute.autocast():
            logits = self._student(self._compute.to_device(image[part])).float()
        label, count = label[part], len(replayed) // distributed.world_size()
        replay_loss = self._compare(logits[:count], label[:count])
        real_loss = self._compare(logits[count:], label[count:])
        loop.backward_step(self._optimizer, settings.replay * replay_loss + settings.real * real_loss)
        self._average.update_parameters(self._student)
        if (step + 1) * settings.candidates // settings.steps > step * settings.candidates // settings.steps:
            self.snapshots[step + 1] = adapter.adapter_state_dict(self._average.module)
        return {"replay": replay_loss.detach(), "real": real_loss.detach()}

    def _compare(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross entropy and soft Dice of (B, K, H, W) logits against soft labels of that shape."""
        return F.cross_entropy(logits, label) + self._dice(torch.softmax(logits, dim=1), label)


class SourceAdapterSettings(SupervisedTrainingSettings):
    """How the source's adapter learns; see :class:`garda.models.objectives.SupervisedTrainingSettings`."""

    steps: PositiveInt = 200
    learning_rate: PositiveFloat = 1e-3


class GardaSettings(Config):
    """How adapters learn; backbone and generator learn by the shared settings.

    Attributes:
        source: how the source's adapter learns from its labels.
        target: how a target's adapter learns.
        trial: real images, and replayed ones, by which one of several candidates is chosen.
    """

    source: SourceAdapterSettings = SourceAdapterSettings()
    target: AdapterTrainingSettings = AdapterTrainingSettings()
    trial: int = Field(default=64, ge=2)


class Garda(ReplayMethod[GardaSettings]):
    """A frozen backbone, an adapter for every domain met, and a generator that gains a style with every target.

    Domain state: the adapter, see :func:`garda.models.adapter.adapter_state_dict`. A domain that has not been met is
    read by the segmenter as the source's first phase left it.
    """

    Settings = GardaSettings

    def check(self) -> None:
        """Refuse what does not fit the task, and an adapter that is more than a domain may keep."""
        super().check()
        size = sum(tensor.nbytes for tensor in adapter.adapter_state_dict(self.build_segmenter()).values())
        remedy = "widen the inner layers, or narrow the first two"
        self.check_state("segmenter.widths", "a domain's adapter", size, remedy)

    def learn_source(self, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Backbone and generator, then the source's adapter from its labels."""
        knowledge = super().learn_source(domain, slices, stage)
        phase = stage("adapter")
        settings = self.calibrate_settings(self.settings.source, slices, phase)

        def build() -> SupervisedObjective:
            objective = self.continue_training(knowledge.segmenter, settings)
            adapter.mark_only_adapter_trainable(objective.segmenter)
            return objective

        learnt = self.fit(build, slices, settings.steps, settings.batch, phase)
        return replace(knowledge, domain_state={domain: adapter.adapter_state_dict(learnt.segmenter)})

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """The target's style, then its adapter, which begins as the backbone's own."""
        settings, source = self.settings.target, knowledge.source_segmenter
        if knowledge.generator is None:
            raise TypeError("garda adapts a generator")
        generator = self.trainer.learn_style(knowledge.generator, domain, slices, stage, source)
        phase = stage("adapter")

        def build() -> AdapterObjective:
            replay = self.draw_pool(replace(knowledge, generator=generator), settings.anatomies)
            replayed = (replay.batch(settings.batch, len(knowledge.domains)) for _ in range(CONTRAST_BATCHES))
            batches = [Batch(image.cpu(), label.argmax(dim=1).cpu()) for image, label in replayed]
            bearable = self.calibrate(settings.randomisation, batches, phase)
            suited = settings.model_copy(update={"randomisation": bearable})
            return AdapterObjective(knowledge.segmenter, replay, self.task, suited, self.compute)

        learnt = self.fit(build, slices, settings.steps, settings.batch, phase)
        own = self._choose(knowledge, learnt, slices, stage)
        generator.round_style()  # not earlier: the adapter has learnt from the style as it was learnt
        return knowledge.with_domain(domain, own, generator=generator)

    def network_for(self, knowledge: Knowledge, domain: str) -> BasicUNet:
        """The backbone with the domain's adapter; with its own where the domain has not been met."""
        return adapter.apply_adapter(knowledge.segmenter, knowledge.domain_state.get(domain, {}))

    def _choose(self, known: Knowledge, learnt: AdapterObjective, slices: Slices, stage: Stage) -> Mapping[str, Tensor]:
        """The adapter, of those put aside, that label-free scores put first; of one, there is nothing to choose."""
        if len(learnt.snapshots) == 1:
            return next(iter(learnt.snapshots.values()))
        seed, count = derive_seed(stage("adapter").seed, "choice"), self.settings.trial
        torch.manual_seed(seed)
        real = slices.batch(0, count, seed).image
        replayed, label = learnt.replay.batch(count, len(known.domains))
        candidates = []
        for step, own in sorted(learnt.snapshots.items()):
            network = self.compute.prepare(adapter.apply_adapter(known.segmenter, own)).eval()
            scores = choice.score_candidate(network, real, replayed, label, self.compute)
            candidates.append(Candidate(step, own, scores))
        stage.offer(candidates)
        return candidates[choice.choose(candidates)].own
