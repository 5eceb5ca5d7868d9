"""Tent, offline: the entropy of the predictions falls on the target's training slices.

Wang et al., "Tent: fully test-time adaptation by entropy minimization", ICLR 2021.
"""

import copy

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
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import Stateful


class EntropyObjective:
    """Minimise the predictions' entropy; only normalisation's scales and shifts learn, under the batch's statistics.

    L = mean over pixels of -sum_c p_c log p_c (Tent, section 3.1). The running statistics noted on the way belong to
    scales and shifts that have changed since: :func:`garda.models.inference.estimate_statistics` is due afterwards.
    """

    def __init__(self, network: BasicUNet, learning_rate: float, compute: Compute) -> None:
        self.segmenter = compute.prepare(network).train().requires_grad_(False)
        norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
        weights = [weight.requires_grad_(True) for norm in norms for weight in norm.parameters()]
        self._optimizer = torch.optim.Adam(weights, learning_rate, fused=True)
        self._compute = compute

    def state(self) -> dict[str, Stateful]:
        """Network and optimizer."""
        return {"segmenter": self.segmenter, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One step on an unlabelled batch."""
        with self._compute.autocast():
            logits = self.segmenter(self._compute.to_device(batch.image)[sharding.shard(len(batch.image))])
        loss = entropy(logits.float())
        loop.backward_step(self._optimizer, loss)
        return {"entropy": loss.detach()}


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy over the pixels of (B, K, H, W) logits, nats, in [0, log K]."""
    return Categorical(logits=logits.movedim(1, -1), validate_args=False).entropy().mean()


class TentSettings(StatisticsSettings):
    """How a target is learnt.

    Attributes:
        steps: number of steps, of ``batch`` slices each.
        learning_rate: of Adam.
    """

    steps: PositiveInt = 100
    learning_rate: PositiveFloat = 1e-3


class Tent(Method[TentSettings]):
    """One segmenter, whose normalisation goes on from site to site.

    Tent normalises by the batch at hand, at prediction too. So that a scan's segmentation does not depend on what else
    is segmented beside it, running statistics are estimated once the scales and shifts are learnt.
    """

    Settings = TentSettings

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Scales and shifts by entropy, then the statistics that go with them."""
        settings = self.settings

        def build() -> EntropyObjective:
            return EntropyObjective(copy.deepcopy(knowledge.segmenter), settings.learning_rate, self.compute)

        segmenter = self.fit(build, slices, settings.steps, settings.batch, stage("segmenter")).segmenter
        inference.estimate_statistics(segmenter, slices, settings, stage("statistics"), self.compute)
        return knowledge.with_domain(domain, segmenter=segmenter.eval().requires_grad_(False))
