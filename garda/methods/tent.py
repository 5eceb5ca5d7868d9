"""Tent, offline: make the segmenter sure of its answers on the target's training slices.

Wang et al., "Tent: fully test-time adaptation by entropy minimization", ICLR 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from monai.networks.nets import BasicUNet
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributions import Categorical

from garda.data.dataset import Batch, Slices
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models import inference
from garda.models.inference import StatisticsSettings
from garda.training import loop, sharding
from garda.training.cache import Stages
from garda.training.device import Compute
from garda.training.loop import Stateful


class FromEntropy:
    """Learn to be sure: only normalisation's scales and shifts, under the batch's own statistics (Wang et al. 2021).

    L = mean over pixels of -sum_c p_c log p_c (section 3.1). The running statistics that are noted on the way belong to
    scales and shifts that have changed since; :func:`estimate_statistics` is due afterwards.
    """

    def __init__(self, network: BasicUNet, learning_rate: float, compute: Compute) -> None:
        self.segmenter = compute.prepare(network).train().requires_grad_(False)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        weights = [weight.requires_grad_(True) for norm in norms for weight in norm.parameters()]
        self._optimizer = torch.optim.Adam(weights, lr=learning_rate, fused=True)
        self._compute = compute

    def state(self) -> Mapping[str, Stateful]:
        """Network and optimizer."""
        return {"segmenter": self.segmenter, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on an unlabelled batch."""
        with self._compute.autocast():
            logits = self.segmenter(self._compute.place(batch.image)[sharding.part(len(batch.image))])
        loss = entropy(logits.float())
        loop.descend(self._optimizer, loss)
        return {"entropy": loss.detach()}


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the answers to the pixels of (B, K, H, W) logits, nats, in [0, log K]."""
    return Categorical(logits=logits.movedim(1, -1), validate_args=False).entropy().mean()


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
        segmenter = loop.fit(
            lambda: FromEntropy(copy.deepcopy(knowledge.segmenter), lesson.learning_rate, self.compute),
            lambda step: slices.batch(step, lesson.batch, stage.seed),
            lesson.steps,
            stage,
        ).segmenter
        inference.estimate_statistics(segmenter, slices, lesson, stages("statistics"), self.compute)
        segmenter.eval().requires_grad_(False)
        return replace(knowledge, segmenter=segmenter, domains=(*knowledge.domains, domain))
