"""Our own recipe: one shared trunk, a small share for each domain, taught by real images and labelled replay."""

from __future__ import annotations

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
from garda.core.errors import ConfigError
from garda.core.seeds import derive_seed
from garda.data import augment
from garda.data.augment import AppearanceSettings, GeometrySettings, RandomisationSettings
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.methods.base import SURVEY, ReplayMethod
from garda.methods.knowledge import Knowledge, domain_state_limit
from garda.models import adapter, choice, objectives, unet
from garda.models.choice import Candidate
from garda.models.objectives import SupervisedObjective, SupervisedTrainingSettings
from garda.models.replay import Replay
from garda.training import distributed, loop, sharding
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import Phase, Stateful


class StudentRandomisation(RandomisationSettings):
    """How far the student's images are randomised; see :class:`garda.data.augment.RandomisationSettings`."""

    probability: float = Field(default=0.5, ge=0, le=1)


class AdapterTrainingSettings(Config):
    """How a segmenter learns an unlabelled target.

    Attributes:
        steps: number of steps.
        batch: replayed images a step, and as many real ones.
        learning_rate: the highest, of AdamW; falls to 0 by a cosine.
        candidates: how many times the averaged share is put aside, at equal distances, the last step included;
            among several, label-free scores choose.
        average: steps over which the weights are averaged that answer for real images and that are kept.
        anatomies: size of the pool from which replayed anatomies are taken.
        replay: weight of the lesson from replayed images.
        real: weight of the lesson from real images.
        geometry: augmentation of image and answer.
        randomisation: of the images that the student sees.
        appearance: plain augmentation, after it.
    """

    steps: PositiveInt = 150
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 1e-3
    candidates: PositiveInt = 1
    average: PositiveInt = 33
    anatomies: PositiveInt = 512
    replay: NonNegativeFloat = 1.0
    real: NonNegativeFloat = 1.0
    geometry: GeometrySettings = GeometrySettings()
    randomisation: StudentRandomisation = StudentRandomisation()
    appearance: AppearanceSettings = AppearanceSettings()


class Snapshots:
    """Shares of a segmenter that were put aside while it learnt, by step; part of a checkpoint."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, Tensor]] = {}

    def put(self, step: int, own: dict[str, Tensor]) -> None:
        """Put one aside."""
        self.by_step[step] = own

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """All of them."""
        return self.by_step

    def load_state_dict(self, state_dict: dict[int, dict[str, Tensor]]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.by_step = dict(state_dict)


class AdapterObjective:
    """Learn an unlabelled target from both that can be had: replayed images with labels, and its real images.

    Replayed anatomies in the target's look carry their labels. For real images the student's own average answers, on
    the unchanged image (Tarvainen and Valpola, NeurIPS 2017). The student sees both kinds moved and randomised.

    Normalisation keeps the running statistics of the source's training: how much of an image is object or background
    differs between sites as well as the scanner does, and statistics of the target's images take the one for the other
    (docs/ablation.md). Its scales and shifts learn.
    """

    def __init__(
        self, student: BasicUNet, replay: Replay, task: Task, settings: AdapterTrainingSettings, compute: Compute
    ) -> None:
        """Prepare the student, of which a domain's own share learns.

        Args:
            student: what learning begins with; left as it is.
            replay: its generator has the target as its last domain.
            task: what is segmented.
            lesson: how to learn.
            compute: device and precision.
        """
        self._student = adapter.mark_only_adapter_trainable(compute.prepare(copy.deepcopy(student)).eval())
        self._average = AveragedModel(self._student, multi_avg_fn=loop.ema(settings.average), use_buffers=True)
        self._average.eval().requires_grad_(False)
        self._average.update_parameters(self._student)  # the first update copies
        own = [parameter for parameter in self._student.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(own, lr=settings.learning_rate, weight_decay=1e-4, fused=True)
        self._loss = DiceLoss(include_background=False)
        self._task, self._settings, self._compute = task, settings, compute
        self.replay, self.shares = replay, Snapshots()

    def state(self) -> Mapping[str, Stateful]:
        """Student, its average, the optimizer and what was put aside; the pool follows from the stage's seed."""
        networks = {"student": self._student, "average": self._average}
        return {**networks, "optimizer": self._optimizer, "shares": self.shares}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a batch of the target's images."""
        settings, real = self._settings, self._compute.to_device(batch.image)
        replayed, label = self.replay.batch(settings.batch, len(self.replay.generator.domains) - 1)
        image, answer = torch.cat([replayed, real]), torch.cat([label, self._answer(real)])
        motion = augment.draw_affine(len(image), settings.geometry, self._task.any_orientation, image.device)
        image, answer = augment.warp(image, motion), augment.warp(answer, motion)
        image = augment.change_appearance(
            augment.randomise_appearance(image, settings.randomisation), settings.appearance
        )
        part = sharding.shard(len(replayed), len(real))
        loop.cosine_lr(self._optimizer, settings.learning_rate, step, settings.steps)
        with self._compute.autocast():
            logits = self._student(self._compute.to_device(image[part])).float()
        answer, count = answer[part], len(replayed) // distributed.world_size()
        losses = {
            "replay": self._compare(logits[:count], answer[:count]),
            "real": self._compare(logits[count:], answer[count:]),
        }
        loop.backward_step(self._optimizer, settings.replay * losses["replay"] + settings.real * losses["real"])
        self._average.update_parameters(self._student)
        if (step + 1) * settings.candidates // settings.steps > step * settings.candidates // settings.steps:
            self.shares.put(step + 1, adapter.adapter_state_dict(self._average.module))
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _answer(self, image: Tensor) -> Tensor:
        """(B, K, H, W) probabilities for real images."""
        with self._compute.autocast():
            return torch.softmax(self._average(image).float(), dim=1)

    def _compare(self, logits: Tensor, answer: Tensor) -> Tensor:
        """Cross entropy and soft Dice against soft answers."""
        return F.cross_entropy(logits, answer) + self._loss(torch.softmax(logits, dim=1), answer)


class SourceAdapterSettings(SupervisedTrainingSettings):
    """How the source's own share learns; see :class:`garda.models.objectives.SupervisedTrainingSettings`."""

    steps: PositiveInt = 200
    learning_rate: PositiveFloat = 1e-3


class GardaSettings(Config):
    """The recipe.

    Attributes:
        source: how the source's own share learns from its labels.
        target: how a target's own share learns.
        trial: real images, and replayed ones, by which the checkpoint of a target's stage is chosen.
    """

    source: SourceAdapterSettings = SourceAdapterSettings()
    target: AdapterTrainingSettings = AdapterTrainingSettings()
    trial: int = Field(default=64, ge=2)


class Garda(ReplayMethod[GardaSettings]):
    """The trunk learns the source under randomised appearance and is never touched again.

    Every domain met keeps its own share of the segmenter (normalisation and first layers, see
    :mod:`garda.models.adapter`) under ``statistics[domain]``, so nothing that is learnt later makes an earlier domain
    worse. A domain that has not been met is read by the trunk's common share. The generator's anatomy is the source's;
    a target adds its look.
    """

    Settings = GardaSettings

    def check(self) -> None:
        """Refuse what does not fit the task, and a share of the network that is more than a domain may keep."""
        super().check()
        network = unet.build_segmenter(self.task, self.shared.segmenter)
        size = sum(tensor.nbytes for tensor in adapter.adapter_state_dict(network).values())
        if size > domain_state_limit(network):
            raise ConfigError(
                "segmenter.widths",
                f"a domain's own share would take {size} bytes, more than {domain_state_limit(network)}",
                "widen the inner layers, or narrow the first two",
            )

    def learn_source(self, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Trunk and generator, then the source's own share from its labels."""
        knowledge = super().learn_source(domain, slices, stage)
        phase = stage("adapter")
        settings = self.suit_settings(self.settings.source, slices, phase)

        def build() -> SupervisedObjective:
            learner = objectives.continue_training(
                knowledge.segmenter, self.task, self.shared.segmenter, settings, self.compute
            )
            adapter.mark_only_adapter_trainable(learner.segmenter)
            return learner

        learnt = loop.fit(build, lambda step: slices.batch(step, settings.batch, phase.seed), settings.steps, phase)
        return replace(knowledge, domain_state={domain: adapter.adapter_state_dict(learnt.segmenter)})

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """The target's look, then its own share of the segmenter, which begins as the common one."""
        previous, teacher = knowledge.generator, knowledge.source_segmenter
        if previous is None:
            raise TypeError("garda adapts a generator")
        generator = self.recipe.learn_style(previous, domain, slices, stage, teacher)
        phase, settings = stage("adapter"), self.settings.target
        learnt = loop.fit(
            lambda: self._open_target_lesson(replace(knowledge, generator=generator), phase),
            lambda step: slices.batch(step, settings.batch, phase.seed),
            settings.steps,
            phase,
        )
        own = self._choose(knowledge, learnt, slices, stage)
        generator.round_style()  # not earlier: the share has learnt from the look as it was learnt
        return replace(
            knowledge,
            generator=generator,
            domains=(*knowledge.domains, domain),
            domain_state={**knowledge.domain_state, domain: own},
        )

    def network_for(self, knowledge: Knowledge, domain: str) -> BasicUNet:
        """The trunk with the domain's own share; with the common one where the domain has not been met."""
        return adapter.apply_adapter(knowledge.segmenter, knowledge.domain_state.get(domain, {}))

    def _choose(
        self, knowledge: Knowledge, learnt: AdapterObjective, slices: Slices, stage: Stage
    ) -> Mapping[str, Tensor]:
        """The share, of those put aside, that label-free scores put first; of one, there is nothing to choose."""
        if len(learnt.shares.by_step) == 1:
            return next(iter(learnt.shares.by_step.values()))
        seed, count = derive_seed(stage("adapter").seed, "choice"), self.settings.trial
        torch.manual_seed(seed)
        real = slices.batch(0, count, seed).image
        replayed, label = learnt.replay.batch(count, len(learnt.replay.generator.domains) - 1)
        candidates = []
        for step, own in sorted(learnt.shares.by_step.items()):
            network = self.compute.prepare(adapter.apply_adapter(knowledge.segmenter, own)).eval()
            scores = choice.score_candidate(network, real, replayed, label, self.compute)
            candidates.append(Candidate(step, own, scores))
        stage.offer(candidates)
        return candidates[choice.choose(candidates)].own

    def _open_target_lesson(self, knowledge: Knowledge, phase: Phase) -> AdapterObjective:
        settings = self.settings.target
        replay = self.draw_pool(knowledge, settings.anatomies)
        replayed = [replay.batch(settings.batch, len(knowledge.domains)) for _ in range(SURVEY)]
        batches = [Batch(image.cpu(), label.argmax(dim=1).cpu()) for image, label in replayed]
        suited = settings.model_copy(update={"randomisation": self.suit(settings.randomisation, batches, phase)})
        return AdapterObjective(knowledge.segmenter, replay, self.task, suited, self.compute)
