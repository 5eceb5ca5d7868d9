"""ADVENT with replay in the source's place: a target's images are to be segmented as surely as the source's.

Vu et al., "ADVENT: adversarial entropy minimization for domain adaptation in semantic segmentation", CVPR 2019
(arXiv 1811.12833).
"""

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.errors import ConfigError
from garda.data.dataset import Batch, Slices
from garda.methods.base import TargetTrainingSettings
from garda.methods.knowledge import Knowledge
from garda.methods.replay_method import ReplayMethod
from garda.models.replay import Replay
from garda.training import distributed, loop, sharding
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import Stateful


class AdventSettings(TargetTrainingSettings):
    """How a segmenter and the discriminator of its predictions learn from each other.

    Attributes:
        steps: number of steps.
        batch: replayed images a step, and as many real ones.
        learning_rate: of the segmenter's AdamW; falls to 0 by a cosine.
        adversarial: lambda_adv, weight of the adversarial loss.
        discriminator_rate: learning rate of the discriminator's Adam; falls likewise.
        widths: output channels of the discriminator's convolutions but the last, each of which halves the sides.
        anatomies: size of the pool from which replayed anatomies are taken.
    """

    adversarial: NonNegativeFloat = 0.001
    discriminator_rate: PositiveFloat = 1e-4
    widths: tuple[PositiveInt, ...] = Field(default=(32, 64, 128), min_length=1)
    anatomies: PositiveInt = 512


class AdversarialObjective:
    """Supervision by replayed source images, and an adversary between source and target (ADVENT, section 3.2).

    A discriminator D tells the self-information maps I of replayed source images from those of real target images. The
    segmenter learns the replayed labels and to deceive D:
    L = L_seg(source) + lambda_adv BCE(D(I(target)), source), beside
    L_D = (BCE(D(I(source)), source) + BCE(D(I(target)), target)) / 2.

    Both kinds of images are one batch of the segmenter, so that normalisation treats both as it will at prediction.
    With separate statistics, D would see less of their difference than there is.
    """

    def __init__(
        self, segmenter: BasicUNet, replay: Replay, classes: int, settings: AdventSettings, compute: Compute
    ) -> None:
        """Prepare both networks.

        Args:
            segmenter: learns; changed in place.
            replay: images in the source's style and their labels.
            classes: K, the background included.
            settings: how both learn.
            compute: device and precision.
        """
        self.segmenter = compute.prepare(segmenter).train().requires_grad_(True)
        self._discriminator = compute.prepare(build_discriminator(classes, settings.widths)).train()
        ours, theirs = segmenter.parameters(), self._discriminator.parameters()
        self._optimizer = torch.optim.AdamW(ours, settings.learning_rate, weight_decay=1e-4, fused=True)
        self._opponent = torch.optim.Adam(theirs, settings.discriminator_rate, betas=(0.9, 0.99), fused=True)
        self._loss = DiceCELoss(softmax=True, include_background=False)
        self._replay, self._settings, self._compute = replay, settings, compute

    def state(self) -> dict[str, Stateful]:
        """Both networks and both optimizers; what is replayed follows from the phase's seed."""
        adversary = {"discriminator": self._discriminator, "discriminator_optimizer": self._opponent}
        return {"segmenter": self.segmenter, "optimizer": self._optimizer, **adversary}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One step of the segmenter on an unlabelled batch, then one of the discriminator on the same predictions."""
        settings = self._settings
        loop.cosine_lr(self._optimizer, settings.learning_rate, step, settings.steps)
        loop.cosine_lr(self._opponent, settings.discriminator_rate, step, settings.steps)
        image, label = self._replay.batch(settings.batch, 0)
        images = self._compute.to_device(torch.cat([image, self._compute.to_device(batch.image)]))
        part, count = sharding.shard(len(image), len(batch.image)), len(image) // distributed.world_size()
        with self._compute.autocast():
            logits = self.segmenter(images[part]).float()
        segmentation = self._loss(logits[:count], label[sharding.shard(len(label))])
        source, target = self_information(logits).tensor_split([count])
        adversarial = self._train_segmenter(segmentation, target)
        told = self._train_discriminator(source.detach(), target.detach())
        return {"segmentation": segmentation.detach(), "adversarial": adversarial, "discriminator": told}

    def _train_segmenter(self, segmentation: Tensor, target: Tensor) -> Tensor:
        self._discriminator.requires_grad_(False)
        adversarial = self._judge(target, "source")
        loop.backward_step(self._optimizer, segmentation + self._settings.adversarial * adversarial)
        self._discriminator.requires_grad_(True)
        return adversarial.detach()

    def _train_discriminator(self, source: Tensor, target: Tensor) -> Tensor:
        loss = (self._judge(source, "source") + self._judge(target, "target")) / 2
        loop.backward_step(self._opponent, loss)
        return loss.detach()

    def _judge(self, maps: Tensor, claimed: str) -> Tensor:
        """Cross entropy between the discriminator's opinion of (B, K, H, W) maps and what they are said to be."""
        with self._compute.autocast():
            opinion = self._discriminator(maps).float()
        return F.binary_cross_entropy_with_logits(opinion, torch.full_like(opinion, float(claimed == "source")))


def self_information(logits: Tensor) -> Tensor:
    """Weighted self-information -p log p / log K of (B, K, H, W) logits (ADVENT, section 3.2), same shape, in [0, 1).

    Its sum over the classes is the normalised entropy, in [0, 1].
    """
    log_probability = torch.log_softmax(logits, dim=1)
    return -log_probability.exp() * log_probability / math.log(logits.shape[1])


def build_discriminator(classes: int, widths: Sequence[int]) -> nn.Sequential:
    """(B, K, H, W) maps to (B, 1, h, w) logits, positive for the source; h = H / 2^(number of widths + 1), cut.

    Convolutions 4 x 4 of stride 2 with leaky ReLU and without normalisation, as in ADVENT (after DCGAN, Radford et al.
    2016).
    """
    layers: list[nn.Module] = []
    for before, width in itertools.pairwise([classes, *widths]):
        layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))


class Advent(ReplayMethod[AdventSettings]):
    """One segmenter that goes on from site to site, against a discriminator that lives for one stage."""

    Settings = AdventSettings

    def check(self) -> None:
        """Refuse a generator that does not fit the task, and more halvings by the discriminator than its sides have."""
        super().check()
        halvings, (height, width) = len(self.settings.widths) + 1, self.task.size
        if min(height, width) >> halvings < 1:
            what = f"{halvings} convolutions are too many for {height} x {width}"
            raise ConfigError("advent.widths", what, "give fewer")

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """Replayed images with their labels, and the target's images against the discriminator."""
        settings, classes = self.settings, len(self.task.classes)

        def build() -> AdversarialObjective:
            replay = self.draw_pool(knowledge, settings.anatomies)
            return AdversarialObjective(copy.deepcopy(knowledge.segmenter), replay, classes, settings, self.compute)

        segmenter = self.fit(build, slices, settings.steps, settings.batch, stage("segmenter")).segmenter
        return knowledge.with_domain(domain, segmenter=segmenter.eval().requires_grad_(False))
