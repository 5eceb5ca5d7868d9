"""Our own recipe: one shared trunk, a small share for each domain, taught by real images and labelled replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from garda.choice import Candidate, choose, score_candidate
from garda.config import Config
from garda.errors import ConfigError
from garda.knowledge import Knowledge, statistics_limit
from garda.lessons import continue_lesson
from garda.methods.base import SURVEY, Replaying, Stages
from garda.seeds import derive_seed
from garda.segmenter import FromLabels, LabelLessonSettings, build_segmenter
from garda.slices import Batch, Slices
from garda.specialisation import FromTarget, TargetLessonSettings, free_own, read_own, specialise
from garda.training import Stage, fit


class SourceShareSettings(LabelLessonSettings):
    """How the source's own share learns; see :class:`garda.segmenter.LabelLessonSettings`."""

    steps: PositiveInt = 200
    learning_rate: PositiveFloat = 1e-3


class GardaSettings(Config):
    """The recipe.

    Attributes:
        source: how the source's own share learns from its labels.
        target: how a target's own share learns.
        trial: real images, and replayed ones, by which the checkpoint of a target's stage is chosen.
    """

    source: SourceShareSettings = SourceShareSettings()
    target: TargetLessonSettings = TargetLessonSettings()
    trial: int = Field(default=64, ge=2)


class Garda(Replaying[GardaSettings]):
    """The trunk learns the source under randomised appearance and is never touched again.

    Every domain met keeps its own share of the segmenter (normalisation and first layers, see
    :mod:`garda.specialisation`) under ``statistics[domain]``, so nothing that is learnt later makes an earlier domain
    worse. A domain that has not been met is read by the trunk's common share. The generator's anatomy is the source's;
    a target adds its look.
    """

    Settings = GardaSettings

    def check(self) -> None:
        """Refuse what does not fit the task, and a share of the network that is more than a domain may keep."""
        super().check()
        network = build_segmenter(self.task, self.shared.segmenter)
        size = sum(tensor.nbytes for tensor in read_own(network).values())
        if size > statistics_limit(network):
            raise ConfigError(
                "segmenter.widths",
                f"a domain's own share would take {size} bytes, more than {statistics_limit(network)}",
                "widen the inner layers, or narrow the first two",
            )

    def learn_source(self, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Trunk and generator, then the source's own share from its labels."""
        knowledge = super().learn_source(domain, slices, stages)
        stage = stages("adapter")
        lesson = self.suit_lesson(self.settings.source, slices, stage)

        def build() -> FromLabels:
            learner = continue_lesson(knowledge.segmenter, self.task, self.shared.segmenter, lesson, self.compute)
            free_own(learner.segmenter)
            return learner

        learnt = fit(build, lambda step: slices.batch(step, lesson.batch, stage.seed), lesson.steps, stage)
        return replace(knowledge, statistics={domain: read_own(learnt.segmenter)})

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """The target's look, then its own share of the segmenter, which begins as the common one."""
        previous, teacher = knowledge.generator, knowledge.teacher
        if previous is None:
            raise TypeError("garda adapts a generator")
        generator = self.recipe.learn_look(previous, domain, slices, stages, teacher)
        stage, lesson = stages("adapter"), self.settings.target
        learnt = fit(
            lambda: self._open_target_lesson(replace(knowledge, generator=generator), stage),
            lambda step: slices.batch(step, lesson.batch, stage.seed),
            lesson.steps,
            stage,
        )
        own = self._choose(knowledge, learnt, slices, stages)
        generator.round_look()  # not earlier: the share has learnt from the look as it was learnt
        return replace(
            knowledge,
            generator=generator,
            domains=(*knowledge.domains, domain),
            statistics={**knowledge.statistics, domain: own},
        )

    def network(self, knowledge: Knowledge, domain: str) -> BasicUNet:
        """The trunk with the domain's own share; with the common one where the domain has not been met."""
        return specialise(knowledge.segmenter, knowledge.statistics.get(domain, {}))

    def _choose(self, knowledge: Knowledge, learnt: FromTarget, slices: Slices, stages: Stages) -> Mapping[str, Tensor]:
        """The share, of those put aside, that label-free scores put first; of one, there is nothing to choose."""
        if len(learnt.shares.by_step) == 1:
            return next(iter(learnt.shares.by_step.values()))
        seed, count = derive_seed(stages("adapter").seed, "choice"), self.settings.trial
        torch.manual_seed(seed)
        real = slices.batch(0, count, seed).image
        replayed, label = learnt.replay.batch(count, len(learnt.replay.generator.domains) - 1)
        candidates = []
        for step, own in sorted(learnt.shares.by_step.items()):
            network = self.compute.prepare(specialise(knowledge.segmenter, own)).eval()
            scores = score_candidate(network, real, replayed, label, self.compute)
            candidates.append(Candidate(step, own, scores))
        stages.offer(candidates)
        return candidates[choose(candidates)].own

    def _open_target_lesson(self, knowledge: Knowledge, stage: Stage) -> FromTarget:
        lesson = self.settings.target
        replay = self.draw_pool(knowledge, lesson.anatomies)
        replayed = [replay.batch(lesson.batch, len(knowledge.domains)) for _ in range(SURVEY)]
        batches = [Batch(image.cpu(), label.argmax(dim=1).cpu()) for image, label in replayed]
        suited = lesson.model_copy(update={"randomisation": self.suit(lesson.randomisation, batches, stage)})
        return FromTarget(knowledge.segmenter, replay, self.task, suited, self.compute)
