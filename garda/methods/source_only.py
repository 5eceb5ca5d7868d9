"""Learn the source, then change nothing: with plain augmentation the lower bound, with randomisation its rival.

The rival: Ouyang et al., "Causality-inspired single-source domain generalization for medical image segmentation",
arXiv 2111.12525.
"""

from garda.core.config import Config
from garda.data.randomise import RandomisationSettings
from garda.methods.base import Method
from garda.models.objectives import SupervisedTrainingSettings


class SourceOnly(Method[Config]):
    """The source segmenter with plain augmentation, carried along unchanged."""

    @property
    def source_settings(self) -> SupervisedTrainingSettings:
        """Without randomisation, whatever the other methods start with."""
        return self.shared.source.model_copy(update={"randomisation": None})


class Randomised(SourceOnly):
    """The source segmenter with appearance randomisation, carried along unchanged."""

    @property
    def source_settings(self) -> SupervisedTrainingSettings:
        """With randomisation, whatever the other methods start with."""
        chosen = self.shared.source.randomisation or RandomisationSettings()
        return self.shared.source.model_copy(update={"randomisation": chosen})
