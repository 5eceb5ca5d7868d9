"""Which checkpoint of a target's stage to trust, without a label: candidates, their label-free scores, and the choice.

Every score is higher for better and reads only what a site has: its unlabelled images, and replay.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn

from garda.data import augment
from garda.data.augment import AppearanceSettings
from garda.training.device import Compute

PIXELS = 1024  # of the real images, between which neighbourhoods are looked at
SHARPNESS = 20.0  # 1 / temperature 0.05 of the neighbourhood density, as published


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of a target's stage.

    Attributes:
        step: steps learnt.
        own: the domain's adapter after them.
        scores: label-free scores by name; empty until :func:`score_candidate` has given them.
    """

    step: int
    own: Mapping[str, Tensor]
    scores: Mapping[str, float]


@torch.no_grad()
def score_candidate(
    network: nn.Module, real: Tensor, replayed: Tensor, label: Tensor, compute: Compute
) -> dict[str, float]:
    """What can be said of a network without the target's labels.

    Args:
        network: in evaluation mode.
        real: (B, C, H, W) images of the target in [0, 1].
        replayed: (B, C, H, W) replayed images in the target's style.
        label: (B, K, H, W) their label probabilities.
        compute: device and precision.

    Returns:
        ``replay``: soft Dice on the replayed images, in [0, 1];
        ``certainty``: 1 - mean entropy / log K of the answers to real images, in [0, 1];
        ``density``: soft neighbourhood density (Saito et al., ICCV 2021, section 3.2), nats: the mean entropy of each
        pixel's similarities to the others, high where answers form tight groups;
        ``consistency``: soft Dice between the answers to a real image and to the same under another appearance;
        ``plausibility``: -|log| of predicted foreground's share in real images to that in replayed labels.
    """

    def ask(image: Tensor) -> Tensor:
        with compute.autocast():
            return torch.softmax(network(compute.to_device(image)).float(), dim=1)

    answer, other = ask(real), ask(augment.change_appearance(real, AppearanceSettings()))
    dice = DiceLoss(include_background=False)
    entropy = -(answer * answer.clamp_min(1e-8).log()).sum(dim=1).mean()
    found, expected = (float(1 - probabilities[:, 0].mean()) for probabilities in (answer, label))
    return {
        "replay": 1 - float(dice(ask(replayed), label)),
        "certainty": 1 - float(entropy) / math.log(answer.shape[1]),
        "density": neighbourhood_density(answer),
        "consistency": 1 - float(dice(other, answer)),
        "plausibility": -abs(math.log((found + 1e-4) / (expected + 1e-4))),
    }


def neighbourhood_density(answer: Tensor) -> float:
    """Soft neighbourhood density of (B, K, H, W) probabilities (Saito et al., ICCV 2021, equations 1 and 2), nats.

    The pixels are ``PIXELS`` evenly spaced ones of those whose likeliest class is not the background or whose answer is
    unsure; others say nothing.

    >>> sure = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)  # four equal pixels, each near three
    >>> round(neighbourhood_density(sure), 4) == round(math.log(3), 4)
    True
    >>> neighbourhood_density(1 - sure)  # background alone
    0.0
    """
    points = answer.movedim(1, -1).flatten(0, 2)
    points = points[points[:, 0] < 0.95]
    if len(points) < 2:
        return 0.0
    points = nn.functional.normalize(points[:: max(1, len(points) // PIXELS)][:PIXELS], dim=1)
    similarity = points @ points.T * SHARPNESS
    similarity.fill_diagonal_(-math.inf)
    near = torch.softmax(similarity, dim=1)  # equation 1
    return float(-(near * near.clamp_min(1e-12).log()).sum(dim=1).mean())  # equation 2


def choose(candidates: Sequence[Candidate]) -> int:
    """Place of the candidate with the best mean rank over the scores; of equals, the later one.

    Ranks, since the scores have no common unit and none of them can be trusted alone.

    >>> scored = [{"replay": 0.8, "density": 3.0}, {"replay": 0.9, "density": 2.0}, {"replay": 0.7, "density": 1.0}]
    >>> choose([Candidate(step, {}, scores) for step, scores in enumerate(scored)])
    1
    """

    def rank(own: Candidate) -> float:
        """How many candidates it beats, summed over the scores; ties count half."""
        pairs = [(own.scores[name], other.scores[name]) for name in candidates[0].scores for other in candidates]
        return sum((mine > theirs) + 0.5 * (mine == theirs) for mine, theirs in pairs)

    return max(range(len(candidates)), key=lambda place: (rank(candidates[place]), place))
