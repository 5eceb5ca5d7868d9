"""AdaBN: each domain is read with its own normalisation statistics and the source's weights.

Li et al., "Revisiting batch normalization for practical domain adaptation", arXiv 1603.04779, 2016.
"""

import copy

from monai.networks.nets import BasicUNet

from garda.data.dataset import Slices
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models import adapter, inference
from garda.models.inference import StatisticsSettings
from garda.training.cache import Stage


class AdaBN(Method[StatisticsSettings]):
    """The source's weights, and for each target the running means and variances of its own images.

    Domain state of a target: ``<layer>.running_mean`` and ``<layer>.running_var``, (channels,) float32. The source's
    are those of its training and lie in the segmenter.
    """

    Settings = StatisticsSettings

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Statistics of the target's images under the source's weights; no weight is touched."""
        network = self.compute.prepare(copy.deepcopy(knowledge.segmenter))
        inference.estimate_statistics(network, slices, self.settings, stage("statistics"), self.compute)
        state, kinds = network.state_dict(), ("running_mean", "running_var")
        return knowledge.with_domain(domain, {name: state[name].cpu() for name in state if name.endswith(kinds)})

    def check_kept(self, knowledge: Knowledge, domain: str) -> None:
        """All statistics of a target, beside what every method looks at."""
        wanted = {name for name in knowledge.segmenter.state_dict() if name.endswith(("running_mean", "running_var"))}
        if domain != knowledge.domains[0] and {*knowledge.domain_state.get(domain, {})} != wanted:
            raise ValueError("its statistics are not those of the network's layers")
        super().check_kept(knowledge, domain)

    def network_for(self, knowledge: Knowledge, domain: str) -> BasicUNet:
        """A copy of the segmenter with the domain's statistics; with the source's where the domain is not met yet."""
        return adapter.apply_adapter(knowledge.segmenter, knowledge.domain_state.get(domain, {}))
