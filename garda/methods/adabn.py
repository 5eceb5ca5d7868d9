"""AdaBN: every domain reads with its own normalisation statistics and everyone's weights.

Li et al., "Revisiting batch normalization for practical domain adaptation", arXiv 1603.04779, 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from garda.data.dataset import Slices
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models import inference
from garda.models.inference import StatisticsSettings
from garda.training.cache import Stage


class AdaBN(Method[StatisticsSettings]):
    """The source's weights, and for each target the running means and variances of its own images.

    Kept under ``statistics[target]``: ``<layer>.running_mean`` and ``<layer>.running_var``, (channels,) float32. The
    source's are those of its training and lie in the segmenter.
    """

    Settings = StatisticsSettings

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Statistics of the target's images under the source's weights; no weight is touched."""
        network = self.compute.prepare(copy.deepcopy(knowledge.segmenter))
        inference.estimate_statistics(network, slices, self.settings, stage("statistics"), self.compute)
        own = {name: tensor.cpu() for name, tensor in read_statistics(network).items()}
        domain_state = {**knowledge.domain_state, domain: own}
        return replace(knowledge, domains=(*knowledge.domains, domain), domain_state=domain_state)

    def network_for(self, knowledge: Knowledge, domain: str) -> BasicUNet:
        """A copy of the segmenter with the domain's statistics; with the source's where the domain is not met yet."""
        network = copy.deepcopy(knowledge.segmenter)
        network.load_state_dict({**network.state_dict(), **knowledge.domain_state.get(domain, {})})
        return network


def read_statistics(network: nn.Module) -> Mapping[str, Tensor]:
    """A network's running means and variances, by name in its state; not copied."""
    kinds = ("running_mean", "running_var")
    return {name: value for name, value in network.state_dict().items() if name.endswith(kinds)}
