"""ADVENT with replay in the source's place: a target's images are to be answered as surely as the source's.

Vu et al., "ADVENT: adversarial entropy minimization for domain adaptation in semantic segmentation", CVPR 2019
(arXiv 1811.12833).
"""

from __future__ import annotations

import copy
from dataclasses import replace

from garda.errors import ConfigError
from garda.knowledge import Knowledge
from garda.methods.base import Replaying, Stages
from garda.replay_lessons import AdversaryLessonSettings, FromAdversary
from garda.slices import Slices
from garda.training import fit


class Adversarial(Replaying[AdversaryLessonSettings]):
    """One network that goes on from site to site, against a discriminator that lives for one stage."""

    Settings = AdversaryLessonSettings

    def check(self) -> None:
        """Refuse a generator that does not fit the task, and more halvings by the discriminator than its sides have."""
        super().check()
        halvings, (height, width) = len(self.settings.widths) + 1, self.task.size
        if min(height, width) >> halvings < 1:
            raise ConfigError(
                "adversarial.widths", f"{halvings} convolutions are too many for {height} x {width}", "give fewer"
            )

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Replayed images with their labels, and the target's images against the discriminator."""
        stage, lesson = stages("segmenter"), self.settings

        def build() -> FromAdversary:
            replay = self.draw_pool(knowledge, lesson.anatomies)
            return FromAdversary(
                copy.deepcopy(knowledge.segmenter), replay, len(self.task.classes), lesson, self.compute
            )

        learnt = fit(build, lambda step: slices.batch(step, lesson.batch, stage.seed), lesson.steps, stage)
        segmenter = learnt.segmenter.eval().requires_grad_(False)
        return replace(knowledge, segmenter=segmenter, domains=(*knowledge.domains, domain))
