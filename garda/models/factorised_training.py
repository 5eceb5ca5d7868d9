"""How the factorised generator learns: from the source's images and labels, then from a target's images."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from garda.core.config import Config
from garda.core.seeds import derive_seed
from garda.data import augment
from garda.data.augment import ImitatedGeometrySettings, RandomisationSettings
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.models.factorised import FactorisedGenerator, FactorisedSettings
from garda.models.flow_prior import WARM_UP, FlowPrior, FromCodes, PriorLessonSettings
from garda.models.generator import Recipe
from garda.training import cache, loop, sharding
from garda.training.cache import Stages
from garda.training.device import Compute
from garda.training.loop import Stage, Stateful


class ReconstructionSettings(Config):
    """How two images are compared.

    Attributes:
        edges: weight of the difference of gradients.
        features: weight of the difference of the source segmenter's features.
    """

    edges: NonNegativeFloat = 2.0
    features: NonNegativeFloat = 0.1


class LookRandomisation(RandomisationSettings):
    """Looks that an appearance code can tell: mostly curves; see :class:`garda.data.augment.RandomisationSettings`."""

    probability: float = Field(default=0.9, ge=0, le=1)
    blur: NonNegativeFloat = 0.7
    coarser: float = Field(default=1.3, ge=1)
    noise: NonNegativeFloat = 0.02


class PairLessonSettings(Config):
    """How images and labels of the source are taken apart and put together again.

    Attributes:
        steps: number of steps.
        batch: slices a step.
        learning_rate: the highest; rises over 50 steps, falls to 0 by a cosine.
        geometry: augmentation of image and label.
        randomisation: makes the looks that the appearance code must tell apart and the anatomy code must not see.
        code_noise: standard deviation of the noise on the anatomy code, whose own is 1.
        loss: how images are compared.
    """

    steps: PositiveInt = 1000
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 2e-3
    geometry: ImitatedGeometrySettings = ImitatedGeometrySettings()
    randomisation: LookRandomisation = LookRandomisation()
    code_noise: NonNegativeFloat = 0.1
    loss: ReconstructionSettings = ReconstructionSettings()


class LookLessonSettings(Config):
    """How a target's look is learnt.

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
    loss: ReconstructionSettings = ReconstructionSettings()


class Comparison:
    """The distance of two images: intensities, edges, and what the source segmenter sees in them.

    Intensities alone leave small bright things on black unlearnt; features give edges back that the mean blurs.
    """

    def __init__(self, segmenter: BasicUNet, settings: ReconstructionSettings, compute: Compute) -> None:
        self._layers = [segmenter.conv_0, segmenter.down_1, segmenter.down_2]
        self._settings, self._compute = settings, compute

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """A scalar, of (B, C, H, W) each; the gradient reaches ``ours`` alone."""
        distance = 10 * F.mse_loss(ours, theirs) + F.l1_loss(ours, theirs)
        for dim in (2, 3):
            distance = distance + self._settings.edges * F.l1_loss(ours.diff(dim=dim), theirs.diff(dim=dim))
        with self._compute.autocast():
            with torch.no_grad():
                seen = self._features(theirs)
            found = self._features(ours)
        parts = [
            F.l1_loss(a.float(), b.float()) / (sharding.mean(b.float().abs().mean()) + 1e-3)
            for a, b in zip(found, seen, strict=True)
        ]
        return distance + self._settings.features * torch.stack(parts).sum()

    def _features(self, image: Tensor) -> list[Tensor]:
        features = [self._compute.place(image)]
        for layer in self._layers:
            features.append(layer(features[-1]))
        return features[1:]


class FromPairs:
    """Take a source image apart into anatomy and appearance, and put both together again.

    Anatomy is read from one random look of the slice, appearance from another, and the second look is what must come
    out: so the anatomy code carries no look, and the appearance code nothing but the look. Label logits come from the
    anatomy alone.
    """

    def __init__(
        self,
        task: Task,
        generator: FactorisedGenerator,
        teacher: BasicUNet,
        lesson: PairLessonSettings,
        compute: Compute,
    ) -> None:
        self.generator = compute.prepare(generator).train()
        self.generator.prior.requires_grad_(False)
        self._compare = Comparison(compute.prepare(teacher), lesson.loss, compute)
        self._task, self._lesson, self._compute = task, lesson, compute
        self._label_loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
        trained = [p for p in self.generator.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=lesson.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
        )

    def state(self) -> Mapping[str, Stateful]:
        """Generator and optimizer."""
        return {"generator": self.generator, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a labelled batch."""
        if batch.label is None:
            raise ValueError("FromPairs needs labels")
        lesson, generator = self._lesson, self.generator
        image, label = self._compute.place(batch.image), batch.label.to(self._compute.device)
        motion = augment.draw_motion(len(image), lesson.geometry, self._task.any_orientation, image.device)
        image, label = augment.move_image(image, motion), augment.move_label(label, motion)
        part = sharding.part(len(image))
        first, second = (
            self._compute.place(augment.randomise_appearance(image, lesson.randomisation))[part] for _ in range(2)
        )
        with self._compute.autocast():
            code, look = generator.anatomy(first), generator.appearance(second)
            code = code + lesson.code_noise * torch.randn(len(image), *code.shape[1:])[part].to(code.device)
            features, logits = generator.trunk(self._compute.place(code))
            drawn = generator.branches[0](features, look)
        reconstruction, labels = self._compare(drawn, second), self._label_loss(logits, label[part].unsqueeze(1))
        loop.set_rate(self._optimizer, lesson.learning_rate, step, lesson.steps, warm_up=WARM_UP)
        loop.descend(self._optimizer, reconstruction + labels)
        return {"reconstruction": reconstruction.detach(), "label": labels.detach()}


class FromLook:
    """Learn one target's look: its own branch alone, from images whose anatomy and appearance the encoders read."""

    def __init__(
        self,
        task: Task,
        generator: FactorisedGenerator,
        teacher: BasicUNet,
        lesson: LookLessonSettings,
        compute: Compute,
    ) -> None:
        """Prepare the last domain's branch.

        Args:
            task: what is segmented.
            generator: has the new domain as its last.
            teacher: the source segmenter.
            lesson: how to learn.
            compute: device and precision.
        """
        self.generator = compute.prepare(generator).eval().requires_grad_(False)
        self._branch = self.generator.branches[-1].requires_grad_(True)
        self._compare = Comparison(compute.prepare(teacher), lesson.loss, compute)
        self._optimizer = torch.optim.AdamW(self._branch.parameters(), lr=lesson.learning_rate, fused=True)
        self._task, self._lesson, self._compute = task, lesson, compute

    def state(self) -> Mapping[str, Stateful]:
        """The branch and its optimizer."""
        return {"branch": self._branch, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a batch of the target's images."""
        image = self._compute.place(batch.image)
        motion = augment.draw_motion(len(image), self._lesson.geometry, self._task.any_orientation, image.device)
        image = self._compute.place(augment.move_image(image, motion)[sharding.part(len(image))])
        with self._compute.autocast():
            drawn, _ = redraw(self.generator, image, self._compute)
        loss = self._compare(drawn, image)
        loop.set_rate(self._optimizer, self._lesson.learning_rate, step, self._lesson.steps)
        loop.descend(self._optimizer, loss)
        return {"reconstruction": loss.detach()}


def redraw(generator: FactorisedGenerator, image: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """The last domain's image from an image's own anatomy and appearance, (B, C, H, W), and the appearance (B, N)."""
    with torch.no_grad():
        look = generator.appearance(image)
        features, _ = generator.trunk(compute.place(generator.anatomy(image)))
    return generator.branches[-1](features, look), look


@torch.no_grad()
def survey_look(generator: FactorisedGenerator, images: list[Tensor], compute: Compute) -> None:
    """Measure how the last domain's appearance is distributed, and the noise that no code explains.

    Args:
        generator: its last rows of ``mean``, ``factor`` and ``noise`` are set.
        images: (B, C, H, W) batches of the domain.
        compute: device and precision.
    """
    looks, noises = [], []
    for image in images:
        with compute.autocast():
            drawn, look = redraw(generator, compute.place(image), compute)
        looks.append(look.float())
        noises.append(noise_level(image.to(drawn.device) - drawn.float()))
    codes = torch.cat(looks)
    spread = torch.eye(codes.shape[1], device=codes.device) * 1e-3  # keeps the factor defined for equal images
    generator.mean[-1] = codes.mean(dim=0)
    generator.factor[-1] = torch.linalg.cholesky(torch.cov(codes.T) + spread)
    generator.noise[-1] = torch.cat(noises).mean()


def noise_level(residual: Tensor) -> Tensor:
    """(B,) standard deviation of white noise in (B, C, H, W), by the median of neighbours' differences.

    The median passes over edges; 0.6745 is the quartile of the standard normal, sqrt 2 that of a difference of two.
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
    reconstruction: PairLessonSettings = PairLessonSettings()
    prior: PriorLessonSettings = PriorLessonSettings()
    style: LookLessonSettings = LookLessonSettings()


class FactorisedRecipe(Recipe[GeneratorSettings, FactorisedGenerator]):
    """Reconstruction of the source and a prior over its anatomy, then a branch for each target's look."""

    def build(self) -> FactorisedGenerator:
        """An untrained factorised generator."""
        return FactorisedGenerator(self.task.channels, len(self.task.classes), self.task.size, self.settings.network)

    def check(self, segmenter: BasicUNet) -> None:
        """Refuse widths that do not fit the task's size."""
        with torch.device("meta"):
            self.build()

    def learn_source(self, domain: str, slices: Slices, stages: Stages, teacher: BasicUNet) -> FactorisedGenerator:
        """Images and labels first, then the prior of the anatomies, then how the source's own looks are distributed."""
        generator = self._learn_pairs(domain, slices, stages, teacher)
        self.compute.prepare(generator)
        generator.prior = self._learn_prior(generator, slices, stages)
        self._survey(generator, slices, stages("generator"))
        return generator

    def learn_look(
        self, previous: FactorisedGenerator, domain: str, slices: Slices, stages: Stages, teacher: BasicUNet
    ) -> FactorisedGenerator:
        """One more branch from the target's images; everything else stays as it is."""
        stage, lesson = stages("generator"), self.settings.style

        def build() -> FromLook:
            generator = copy.deepcopy(previous)
            generator.add_domain(domain)
            return FromLook(self.task, generator, teacher, lesson, self.compute)

        learnt = loop.fit(build, lambda step: slices.batch(step, lesson.batch, stage.seed), lesson.steps, stage)
        generator: FactorisedGenerator = learnt.generator.eval().requires_grad_(False)
        self._survey(generator, slices, stage)
        return generator

    def _learn_pairs(self, domain: str, slices: Slices, stages: Stages, teacher: BasicUNet) -> FactorisedGenerator:
        lesson = self.settings.reconstruction

        def build() -> FactorisedGenerator:
            generator = self.build()
            generator.add_domain(domain)
            return generator

        def learn(stage: Stage) -> FactorisedGenerator:
            return loop.fit(
                lambda: FromPairs(self.task, build(), teacher, lesson, self.compute),
                lambda step: slices.batch(step, lesson.batch, stage.seed),
                lesson.steps,
                stage,
            ).generator

        decides = self.settings.model_dump(mode="json", include={"network", "reconstruction"})
        decides["teacher"] = cache.fingerprint(teacher)
        return stages.shelf.take("factorised", decides, stages("generator"), build, learn)

    def _learn_prior(self, generator: FactorisedGenerator, slices: Slices, stages: Stages) -> FlowPrior:
        lesson = self.settings.prior

        def build() -> FlowPrior:
            return self.build().prior

        def learn(stage: Stage) -> FlowPrior:
            return loop.fit(
                lambda: FromCodes(self.task, generator.anatomy, build(), lesson, self.compute),
                lambda step: slices.batch(step, lesson.batch, stage.seed),
                lesson.steps,
                stage,
            ).prior

        decides = self.settings.model_dump(mode="json", include={"network", "prior"})
        decides["encoder"] = cache.fingerprint(generator.anatomy)
        return self.compute.prepare(stages.shelf.take("prior", decides, stages("prior"), build, learn))

    def _survey(self, generator: FactorisedGenerator, slices: Slices, stage: Stage) -> None:
        lesson = self.settings.style
        seed = derive_seed(stage.seed, "survey")
        images = [slices.batch(step, lesson.batch, seed).image for step in range(lesson.estimate)]
        survey_look(generator, images, self.compute)
