"""Histogram landmarks: a target's intensities are mapped to the source's scale before the source segmenter reads them.

Nyul and Udupa, "On standardizing the MR image intensity scale", Magnetic Resonance in Medicine 42, 1999; Nyul, Udupa
and Zhang, "New variants of a method of MRI scale standardization", IEEE TMI 19, 2000.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from garda.core.config import Config
from garda.data.dataset import Slices
from garda.data.volume import Volume, grid_for
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.training.cache import Stage

PERCENTILES = (1, *range(10, 100, 10), 99)  # both ends and the deciles, as in Nyul et al. 2000


class Histogram(Method[Config]):
    """The source segmenter for all domains, and intensities of the source to which other domains' volumes are mapped.

    Nothing is learnt at a target: a volume brings its own percentiles when it is read.

    Domain state of the source: ``landmarks``, (C, 11) float32 in [0, 1].
    """

    def learn_source(self, domain: str, slices: Slices, held_out: Slices | None, stage: Stage) -> Knowledge:
        """Segmenter from labels, landmarks from the mean of the volumes' percentiles."""
        knowledge = super().learn_source(domain, slices, held_out, stage)
        landmarks = np.mean([find_landmarks(volume) for volume in slices.volumes()], axis=0)
        return replace(knowledge, domain_state={domain: {"landmarks": torch.from_numpy(landmarks)}})

    def standardise(self, knowledge: Knowledge, volume: Volume, domain: str) -> Volume:
        """A volume of any domain but the source with its percentiles at the source's landmarks."""
        source = knowledge.domains[0]
        if domain == source:
            return volume
        own = find_landmarks(grid_for(volume, self.task).to_network(volume.image))
        wanted = knowledge.domain_state[source]["landmarks"].cpu().numpy()
        channels = map(map_intensities, volume.image.numpy().swapaxes(0, 1), own, wanted)
        return replace(volume, image=torch.from_numpy(np.stack([*channels], axis=1)))


def find_landmarks(image: Tensor) -> NDArray[np.float32]:
    """(C, 11) percentiles 1, 10, 20, ..., 90, 99 of a (D, C, H, W) volume on the network's grid, margins included."""
    return np.percentile(image.numpy(), PERCENTILES, axis=(0, 2, 3)).T.astype(np.float32)


def map_intensities(
    values: NDArray[np.float32], own: NDArray[np.float32], wanted: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Map intensities so that landmarks come to lie on landmarks.

    The map is linear between landmarks and goes on beyond them with the slopes of the first and the last piece. An
    intensity on which several landmarks lie, such as the black of a sparse image, goes to the mean of theirs.

    Args:
        values: of any shape.
        own: (n,) landmarks of the image, not falling.
        wanted: (n,) landmarks of the scale to come to, not falling.

    Returns:
        ``values``' shape, in [0, 1].
    """
    knots, place = np.unique(own, return_inverse=True)
    heights = np.bincount(place, wanted) / np.bincount(place)
    if len(knots) == 1:
        return (values + (heights - knots)).clip(0, 1).astype(np.float32)
    slopes = np.diff(heights) / np.diff(knots)
    below, above = np.minimum(values - knots[0], 0), np.maximum(values - knots[-1], 0)
    mapped = np.interp(values, knots, heights) + below * slopes[0] + above * slopes[-1]
    return mapped.clip(0, 1).astype(np.float32)
