"""Tent, offline: make the segmenter sure of its answers on the target's training slices.

Wang et al., "Tent: fully test-time adaptation by entropy minimization", ICLR 2021.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from pydantic import PositiveFloat, PositiveInt

from garda.knowledge import Knowledge
from garda.lessons import FromEntropy, StatisticsSettings, estimate_statistics
from garda.methods.base import Method, Stages
from garda.slices import Slices
from garda.training import fit


class EntropySettings(StatisticsSettings):
    """How the target is learnt.

    Attributes:
        steps: number of steps; their slices a step are ``batch``.
        learning_rate: of Adam.
    """

    steps: PositiveInt = 100
    learning_rate: PositiveFloat = 1e-3


class Entropy(Method[EntropySettings]):
    """One network, whose normalisation goes on from site to site.

    Tent normalises by the batch at hand, at prediction too. So that a scan's segmentation does not depend on what else
    is segmented beside it, running statistics are estimated once the scales and shifts are learnt.
    """

    Settings = EntropySettings

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Scales and shifts by entropy, then the statistics that go with them."""
        stage, lesson = stages("segmenter"), self.settings
        segmenter = fit(
            lambda: FromEntropy(copy.deepcopy(knowledge.segmenter), lesson.learning_rate, self.compute),
            lambda step: slices.batch(step, lesson.batch, stage.seed),
            lesson.steps,
            stage,
        ).segmenter
        estimate_statistics(segmenter, slices, lesson, stages("statistics"), self.compute)
        segmenter.eval().requires_grad_(False)
        return replace(knowledge, segmenter=segmenter, domains=(*knowledge.domains, domain))
