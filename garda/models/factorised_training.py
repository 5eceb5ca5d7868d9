"""How the factorised generator learns: from the source's images and labels, then from a target's images."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from garda.core.config import Config
from garda.core.seeds import derive_seed
from garda.data import augment, randomise
from garda.data.augment import ImitatedGeometrySettings
from garda.data.dataset import Batch, Slices
from garda.data.randomise import RandomisationSettings
from garda.models.factorised import AnatomyEncoder, FactorisedGenerator, FactorisedSettings
from garda.models.features import ReconstructionLoss, ReconstructionLossSettings
from garda.models.flow_prior import WARM_UP, FlowMatchingObjective, FlowPrior, PriorTrainingSettings
from garda.models.generator import GeneratorTrainer
from garda.training import cache, loop, sharding
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import Phase, Stateful


class StyleRandomisation(RandomisationSettings):
    """Styles that an appearance code can tell: mostly curves; see :mod:`garda.data.randomise`."""

    probability: float = Field(default=0.9, ge=0, le=1)
    regions: float = Field(default=0.0, ge=0, le=1)
    blur: NonNegativeFloat = 0.7
    coarser: float = Field(default=1.3, ge=1)
    noise: NonNegativeFloat = 0.02


class ReconstructionTrainingSettings(Config):
    """How images and labels of the source are taken apart and put together again.

    Attributes:
        steps: number of steps.
        batch: slices a step.
        learning_rate: the highest; rises over 50 steps, falls to 0 by a cosine.
        geometry: augmentation of image and label.
        randomisation: makes the styles that the appearance code must tell apart and the anatomy code must not see.
        code_noise: standard deviation of the noise on the anatomy code, whose own is 1.
        loss: how images are compared.
    """

    steps: PositiveInt = 1000
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 2e-3
    geometry: ImitatedGeometrySettings = ImitatedGeometrySettings()
    randomisation: StyleRandomisation = StyleRandomisation()
    code_noise: NonNegativeFloat = 0.1
    loss: ReconstructionLossSettings = ReconstructionLossSettings()


class StyleTrainingSettings(Config):
    """How a target's style is learnt.

    Attributes:
        steps: number of steps.
        batch: slices a step.
        learning_rate: at the first step; falls to 0 by a cosine.
        estimate: batches by which the appearance codes' mean and covariance and the noise are measured.
        geometry: augmentation of the images.
        loss: how images are compared.
    """

    steps: PositiveInt = 200
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 2e-3
    estimate: PositiveInt = 8
    geometry: ImitatedGeometrySettings = ImitatedGeometrySettings()
    loss: ReconstructionLossSettings = ReconstructionLossSettings()


class ReconstructionObjective:
    """Take a source image apart into anatomy and appearance, and put both together again.

    Anatomy is read from one random style of the slice, appearance from another, and the second style is what must come
    out: so the anatomy code carries no style, and the appearance code nothing but the style. Label logits come from the
    anatomy alone.
    """

    def __init__(self, trainer: FactorisedTrainer, domain: str, segmenter: BasicUNet) -> None:
        """Prepare a generator that has met the source alone; its prior does not learn here.

        Args:
            trainer: gives task, settings and device.
            domain: the source's name.
            segmenter: of the source, gives the features by which images are compared; frozen.
        """
        self._task, self._settings, self._compute = trainer.task, trainer.settings.reconstruction, trainer.compute
        self.generator = self._compute.prepare(trainer.build_for(domain)).train()
        self.generator.prior.requires_grad_(False)
        self._compare = ReconstructionLoss(self._compute.prepare(segmenter), self._settings.loss, self._compute)
        self._label_loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
        trained, rate = [p for p in self.generator.parameters() if p.requires_grad], self._settings.learning_rate
        self._optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)

    def state(self) -> Mapping[str, Stateful]:
        """Generator and optimizer."""
        return {"generator": self.generator, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a labelled batch; each loss is one number, detached.

        Raises:
            ValueError: the batch has no label.
        """
        if batch.label is None:
            raise ValueError("ReconstructionObjective needs labels")
        settings, generator = self._settings, self.generator
        image, label = self._compute.to_device(batch.image), batch.label.to(self._compute.device)
        motion = augment.draw_affine(len(image), settings.geometry, self._task.any_orientation, image.device)
        image, label = augment.warp(image, motion), augment.warp_label(label, motion)
        part = sharding.shard(len(image))
        shares = F.one_hot(label, len(self._task.classes)).movedim(3, 1).float()
        first, second = (
            self._compute.to_device(randomise.randomise(image, shares, settings.randomisation))[part] for _ in range(2)
        )
        with self._compute.autocast():
            code, style = generator.anatomy(first), generator.appearance(second)
            code = code + settings.code_noise * torch.randn(len(image), *code.shape[1:])[part].to(code.device)
            features, logits = generator.decoder(self._compute.to_device(code))
            drawn = generator.branches[0](features, style)
        reconstruction, labels = self._compare(drawn, second), self._label_loss(logits, label[part].unsqueeze(1))
        loop.cosine_lr(self._optimizer, settings.learning_rate, step, settings.steps, warm_up=WARM_UP)
        loop.backward_step(self._optimizer, reconstruction + labels)
        return {"reconstruction": reconstruction.detach(), "label": labels.detach()}


class StyleObjective:
    """Learn one target's style: its own branch alone, from images whose anatomy and appearance the encoders read."""

    def __init__(
        self, trainer: FactorisedTrainer, previous: FactorisedGenerator, domain: str, segmenter: BasicUNet
    ) -> None:
        """Prepare a copy of the previous generator with one more domain.

        Args:
            trainer: gives task, settings and device.
            previous: stays as it is.
            domain: the new domain's name.
            segmenter: of the source, gives the features by which images are compared; frozen.
        """
        self._task, self._settings, self._compute = trainer.task, trainer.settings.style, trainer.compute
        generator = copy.deepcopy(previous)
        generator.add_domain(domain)
        self.generator = self._compute.prepare(generator).eval().requires_grad_(False)
        self._branch = self.generator.branches[-1].requires_grad_(True)
        self._compare = ReconstructionLoss(self._compute.prepare(segmenter), self._settings.loss, self._compute)
        self._optimizer = torch.optim.AdamW(self._branch.parameters(), lr=self._settings.learning_rate, fused=True)

    def state(self) -> Mapping[str, Stateful]:
        """The branch and its optimizer."""
        return {"branch": self._branch, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a batch of the target's images; the loss is one number, detached."""
        settings, image = self._settings, self._compute.to_device(batch.image)
        motion = augment.draw_affine(len(image), settings.geometry, self._task.any_orientation, image.device)
        image = self._compute.to_device(augment.warp(image, motion)[sharding.shard(len(image))])
        with self._compute.autocast():
            drawn, _ = redraw(self.generator, image, self._compute)
        loss = self._compare(drawn, image)
        loop.cosine_lr(self._optimizer, settings.learning_rate, step, settings.steps)
        loop.backward_step(self._optimizer, loss)
        return {"reconstruction": loss.detach()}


def redraw(generator: FactorisedGenerator, image: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """The last domain's image from an image's own anatomy and appearance, (B, C, H, W), and the appearance (B, N)."""
    with torch.no_grad():
        style = generator.appearance(image)
        features, _ = generator.decoder(compute.to_device(generator.anatomy(image)))
    return generator.branches[-1](features, style), style


def noise_level(residual: Tensor) -> Tensor:
    """(B,) standard deviation of white noise in (B, C, H, W), by the median of neighbours' differences.

    The median passes over edges; 0.6745 is the quartile of the standard normal, sqrt 2 that of a difference of two.

    >>> noise = 0.05 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> noise[..., 32:] += 1  # an edge
    >>> [round(level, 2) for level in noise_level(noise).tolist()]
    [0.05, 0.05]
    """
    return residual.diff(dim=3).abs().flatten(1).median(dim=1).values / (0.6745 * math.sqrt(2))


class GeneratorSettings(Config):
    """What stands in for images that are gone: the factorised generator.

    Attributes:
        network: architecture.
        reconstruction: how it learns the source's images and labels.
        prior: how it learns which anatomies there are.
        style: how it learns a target's style.
    """

    network: FactorisedSettings = FactorisedSettings()
    reconstruction: ReconstructionTrainingSettings = ReconstructionTrainingSettings()
    prior: PriorTrainingSettings = PriorTrainingSettings()
    style: StyleTrainingSettings = StyleTrainingSettings()


class FactorisedTrainer(GeneratorTrainer[GeneratorSettings, FactorisedGenerator]):
    """Reconstruction of the source and a prior over its anatomy, then a branch for each target's style."""

    def build(self) -> FactorisedGenerator:
        """An untrained factorised generator."""
        return FactorisedGenerator(self.task.channels, len(self.task.classes), self.task.size, self.settings.network)

    def check(self, segmenter: BasicUNet) -> None:
        """Refuse widths that do not fit the task's size."""
        with torch.device("meta"):
            self.build()

    def learn_source(self, domain: str, slices: Slices, stage: Stage, teacher: BasicUNet) -> FactorisedGenerator:
        """Images and labels first, then the prior of the anatomies, then how the source's styles are distributed."""
        settings, phase = self.settings.reconstruction, stage("generator")
        build, objective = partial(self.build_for, domain), partial(ReconstructionObjective, self, domain, teacher)

        def learn(phase: Phase) -> FactorisedGenerator:
            return self.fit(objective, slices, settings.batch, settings.steps, phase).generator

        decides = self.settings.model_dump(mode="json", include={"network", "reconstruction"})
        decides["teacher"] = cache.fingerprint(teacher)
        generator = self.compute.prepare(stage.cache.get_or_train("factorised", decides, phase, build, learn))
        generator.prior = self.compute.prepare(self._learn_prior(generator.anatomy, slices, stage))
        self._estimate_style(generator, slices, phase)
        return generator

    def learn_style(
        self, previous: FactorisedGenerator, domain: str, slices: Slices, stage: Stage, teacher: BasicUNet
    ) -> FactorisedGenerator:
        """One more branch from the target's images; everything else stays as it is."""
        phase, settings = stage("generator"), self.settings.style
        objective = partial(StyleObjective, self, previous, domain, teacher)
        generator = self.fit(objective, slices, settings.batch, settings.steps, phase).generator
        self._estimate_style(generator.eval().requires_grad_(False), slices, phase)
        return generator

    def _learn_prior(self, encoder: AnatomyEncoder, slices: Slices, stage: Stage) -> FlowPrior:
        settings = self.settings.prior

        def build() -> FlowPrior:
            return self.build().prior

        def objective() -> FlowMatchingObjective:
            return FlowMatchingObjective(self.task, encoder, build(), settings, self.compute)

        def learn(phase: Phase) -> FlowPrior:
            return self.fit(objective, slices, settings.batch, settings.steps, phase).prior

        decides = self.settings.model_dump(mode="json", include={"network", "prior"})
        decides["encoder"] = cache.fingerprint(encoder)
        return stage.cache.get_or_train("prior", decides, stage("prior"), build, learn)

    @torch.no_grad()
    def _estimate_style(self, generator: FactorisedGenerator, slices: Slices, phase: Phase) -> None:
        """Measure how the last domain's appearance is distributed, and the noise that no code explains; in place."""
        settings, seed, compute = self.settings.style, derive_seed(phase.seed, "survey"), self.compute
        styles, noises = [], []
        for step in range(settings.estimate):
            image = compute.to_device(slices.batch(step, settings.batch, seed).image)
            with compute.autocast():
                drawn, style = redraw(generator, image, compute)
            styles.append(style.float())
            noises.append(noise_level(image - drawn.float()))
        codes = torch.cat(styles)
        spread = torch.eye(codes.shape[1], device=codes.device) * 1e-3  # keeps the factor defined for equal images
        generator.mean[-1] = codes.mean(dim=0)
        generator.factor[-1] = torch.linalg.cholesky(torch.cov(codes.T) + spread)
        generator.noise[-1] = torch.cat(noises).mean()
