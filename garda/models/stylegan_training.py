"""How the style generator learns: from a source's images, then from the style of a target's."""

import copy
from collections.abc import Mapping
from functools import partial

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from garda.core.config import Config
from garda.data import augment
from garda.data.augment import ImitatedGeometrySettings
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.models import features, stylegan
from garda.models.features import FeatureSettings
from garda.models.generator import GeneratorTrainer
from garda.models.stylegan import Discriminator, StyleGenerator, StyleSettings
from garda.training import distributed, loop, sharding
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import Phase, Stateful


class GanSettings(Config):
    """What both adversarial objectives have (GarDA, section 4.2).

    Attributes:
        steps: number of steps.
        batch: images a step.
        learning_rate: of Adam, for generator and discriminator.
        r1: gamma, weight of the gradient penalty (Mescheder et al. 2018).
        r1_interval: the penalty is applied every so many steps, that much stronger (Karras et al. 2020, section 3.1).
        average_images: half-life of the averaged weights, in images shown; reached after a quarter of the steps.
    """

    steps: PositiveInt
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 2.5e-4
    r1: NonNegativeFloat = 5.0
    r1_interval: PositiveInt = 16
    average_images: PositiveInt = 500_000


class GanTrainingSettings(GanSettings):
    """How the generator learns the source.

    Attributes:
        widths: output channels of the image discriminator's convolutions.
        geometry: geometric augmentation of what the discriminator sees, real and fake; None for none.
    """

    steps: PositiveInt = 1500
    widths: tuple[PositiveInt, ...] = Field(default=(32, 64, 128, 128, 128), min_length=1)
    geometry: ImitatedGeometrySettings | None = ImitatedGeometrySettings()


class GanStyleSettings(GanSettings):
    """How the generator learns a target's style.

    Attributes:
        widths: output channels of the feature discriminator's convolutions.
        content: weight of the content loss.
        distillation: weight of the image distillation.
    """

    steps: PositiveInt = 500
    widths: tuple[PositiveInt, ...] = Field(default=(128, 128, 128), min_length=1)
    content: NonNegativeFloat = 10.0
    distillation: NonNegativeFloat = 1.0

    @property
    def real_images(self) -> int:
        """Real target images a step: the half of the batch that does not repeat old domains."""
        return self.batch - self.batch // 2


class GanStep:
    """Generator against discriminator: losses, optimizers and averaged weights of both objectives.

    The loss is the non-saturating one (Goodfellow et al. 2014, section 3):
    L_D = E softplus(D(fake)) + E softplus(-D(real)) + lazy R1;  L_G = E softplus(-D(fake)) + further losses.
    """

    def __init__(
        self, generator: StyleGenerator, discriminator: Discriminator, settings: GanSettings, compute: Compute
    ) -> None:
        self._generator = compute.prepare(generator).train()
        self._discriminator = compute.prepare(discriminator).train()
        self._settings, self._compute = settings, compute
        self._average = AveragedModel(self._generator, multi_avg_fn=loop.average_by(partial(_decay, settings)))

        def adam(network: nn.Module, share: float) -> torch.optim.Optimizer:
            rate, betas = settings.learning_rate * share, (0.0, 0.99**share)
            return torch.optim.Adam(network.parameters(), lr=rate, betas=betas, fused=True)

        lazy = settings.r1_interval / (settings.r1_interval + 1)  # Karras et al. 2020, appendix B
        self._optimizers = {
            "generator_optimizer": adam(self._generator, 1.0),
            "discriminator_optimizer": adam(self._discriminator, lazy),
        }

    @property
    def generator(self) -> StyleGenerator:
        """A copy of the averaged generator, the one that is kept: in evaluation mode, without gradients."""
        return copy.deepcopy(self._average.module).eval().requires_grad_(False)  # type: ignore[return-value]

    def state(self) -> Mapping[str, Stateful]:
        """Both networks, both optimizers, the averaged weights; what is frozen never changes."""
        networks = {"generator": self._generator, "discriminator": self._discriminator, "average": self._average}
        return networks | self._optimizers

    def _teach_discriminator(self, fake: Tensor, real: Tensor, domains: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the discriminator; ``fake`` and ``real`` are (B, C, H, W) of the same domains."""
        with self._compute.autocast():
            judged_fake = self._discriminator(fake.detach(), domains)
            judged_real = self._discriminator(real.detach(), domains)
        loss = F.softplus(judged_fake).mean() + F.softplus(-judged_real).mean()
        losses = {"discriminator": loss.detach()}
        if step % self._settings.r1_interval == 0:
            penalty = stylegan.r1_penalty(self._discriminator, real, domains)
            loss = loss + penalty * (self._settings.r1 / 2 * self._settings.r1_interval)
            losses["r1"] = penalty.detach()
        loop.backward_step(self._optimizers["discriminator_optimizer"], loss)
        return losses

    def _teach_generator(self, fake: Tensor, domains: Tensor, **further: tuple[float, Tensor]) -> dict[str, Tensor]:
        """One step of the generator; ``further`` holds (weight, loss) by name."""
        self._discriminator.requires_grad_(False)
        with self._compute.autocast():
            loss = F.softplus(-self._discriminator(fake, domains)).mean()
        losses = {"generator": loss.detach()} | {name: value.detach() for name, (_, value) in further.items()}
        loss = loss + sum(weight * value for weight, value in further.values())
        loop.backward_step(self._optimizers["generator_optimizer"], loss)
        self._discriminator.requires_grad_(True)
        self._average.update_parameters(self._generator)
        return losses


def _decay(settings: GanSettings, count: int) -> float:
    """Of the averaged weights: their half-life grows to ``average_images`` over the first quarter of the steps."""
    half_life = min(settings.average_images, 4 * settings.average_images / settings.steps * count)
    return 0.5 ** (settings.batch / half_life)


class GanObjective(GanStep):
    """Learn to draw the source (GarDA, section 3.2)."""

    def __init__(
        self, task: Task, domain: str, network: StyleSettings, settings: GanTrainingSettings, compute: Compute
    ) -> None:
        generator = StyleGenerator(task.channels, task.size, network)
        generator.add_domain(domain)
        discriminator = Discriminator(task.channels, task.size, settings.widths, (domain,))
        super().__init__(generator, discriminator, settings, compute)
        self._task, self._geometry = task, settings.geometry

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step of the discriminator, then one of the generator on the same images; each loss is one number."""
        count, part = len(batch.image), sharding.shard(len(batch.image))
        real = self._move(self._compute.to_device(batch.image)[part], count)
        domains = torch.zeros(len(real), dtype=torch.long)
        with self._compute.autocast():
            fake = self._move(self._generator(self._generator.draw(count)[part], domains), count)
        losses = self._teach_discriminator(fake, real, domains, step)
        return losses | self._teach_generator(fake, domains)

    def _move(self, image: Tensor, count: int) -> Tensor:
        """This process's images of a batch of ``count``."""
        if self._geometry is None:
            return image
        motion = augment.draw_affine(count, self._geometry, self._task.any_orientation, image.device)
        return augment.warp(image, motion[sharding.shard(count)])


class GanStyleObjective(GanStep):
    """Learn one more domain's style, keep the old ones (GarDA, section 3.3).

    Half of each batch repeats old domains, where G_k must equal G_{k-1} (image distillation, same code and noise). The
    other half learns the new style: its features are judged against AdaIN(features of G_{k-1}(z, 0), features of real
    target images).
    """

    _settings: GanStyleSettings

    def __init__(
        self,
        task: Task,
        domain: str,
        previous: StyleGenerator,
        encoder: nn.Module,
        settings: GanStyleSettings,
        compute: Compute,
    ) -> None:
        """Prepare a copy of the previous generator with one more domain.

        Args:
            task: what is segmented.
            domain: the new domain's name.
            previous: G_{k-1}; stays as it is.
            encoder: (B, C, H, W) images to (B, c, h, w) features; frozen.
            settings: how to learn.
            compute: device and precision.
        """
        self._previous = compute.prepare(previous).eval().requires_grad_(False)
        self._encoder = compute.prepare(encoder)
        generator = copy.deepcopy(previous).requires_grad_(True)
        generator.add_domain(domain)
        with torch.no_grad(), compute.autocast():
            shape = self._encoder(compute.to_device(torch.zeros(1, task.channels, *task.size))).shape
        discriminator = Discriminator(shape[1], (shape[2], shape[3]), settings.widths, generator.domains)
        super().__init__(generator, discriminator, settings, compute)

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step; no image is drawn or encoded twice in it.

        Args:
            batch: real target images, :attr:`GanStyleSettings.real_images` of them.
            step: the step's number.
        """
        settings, count = self._settings, self._settings.batch
        old, new_domain = count - settings.real_images, len(self._generator.domains) - 1
        before = torch.cat([torch.randint(new_domain, (old,)), torch.zeros(count - old, dtype=torch.long)])
        domains = torch.cat([before[:old], torch.full((count - old,), new_domain)])
        part, images = sharding.shard(old, count - old), batch.image[sharding.shard(len(batch.image))]
        anatomy, before, domains = self._generator.draw(count)[part], before[part], domains[part]
        old //= distributed.world_size()
        with torch.no_grad(), self._compute.autocast():
            target = self._encoder(self._compute.to_device(images))
            replayed = self._previous(anatomy, before)  # not cut to [0, 1], as what it is compared with
            known = self._encoder(replayed).float()
        real = torch.cat([known[:old], features.adain(known[old:], target)])
        with self._compute.autocast():
            drawn = self._generator(anatomy, domains)
            fake = self._encoder(drawn).float()
        losses = self._teach_discriminator(fake, real, domains, step)
        content = settings.content, F.mse_loss(features.adain(fake[old:], known[old:]), known[old:])
        distillation = settings.distillation, F.l1_loss(drawn[:old], replayed[:old])
        return losses | self._teach_generator(fake, domains, content=content, distillation=distillation)


class StyleGanTrainerSettings(Config):
    """The published generator (GarDA, sections 3.2 and 3.3).

    Attributes:
        network: architecture.
        images: how it learns the source.
        style: how it learns a target's style.
        features: the frozen encoder in which styles are compared.
    """

    network: StyleSettings = StyleSettings()
    images: GanTrainingSettings = GanTrainingSettings()
    style: GanStyleSettings = GanStyleSettings()
    features: FeatureSettings = FeatureSettings()


class StyleGanTrainer(GeneratorTrainer[StyleGanTrainerSettings, StyleGenerator]):
    """Adversarial learning of the source, then of each target's style with distillation of the older ones."""

    def build(self) -> StyleGenerator:
        """An untrained style generator."""
        return StyleGenerator(self.task.channels, self.task.size, self.settings.network)

    def check(self, segmenter: BasicUNet) -> None:
        """Refuse widths that do not fit the task's size, and a feature encoder whose weights cannot be had."""
        settings, task = self.settings, self.task
        height, width = (side >> settings.features.halvings for side in task.size)
        with torch.device("meta"):
            self.build()
            Discriminator(task.channels, task.size, settings.images.widths, ("any",))
            Discriminator(1, (height, width), settings.style.widths, ("any",))
        features.build_encoder(settings.features, segmenter)

    def learn_source(self, domain: str, slices: Slices, stage: Stage, teacher: BasicUNet) -> StyleGenerator:
        """From the source's images; labels and source segmenter are not looked at."""
        settings = self.settings.images
        objective = partial(GanObjective, self.task, domain, self.settings.network, settings, self.compute)

        def learn(phase: Phase) -> StyleGenerator:
            return self.fit(objective, slices, settings.batch, settings.steps, phase).generator

        decides = self.settings.model_dump(mode="json", include={"network", "images"})
        build = partial(self.build_for, domain)
        return stage.cache.get_or_train("style", decides, stage("generator"), build, learn)

    def learn_style(
        self, previous: StyleGenerator, domain: str, slices: Slices, stage: Stage, teacher: BasicUNet
    ) -> StyleGenerator:
        """From the features of the target's images."""
        settings, encoder = self.settings.style, features.build_encoder(self.settings.features, teacher)
        objective = partial(GanStyleObjective, self.task, domain, previous, encoder, settings, self.compute)
        return self.fit(objective, slices, settings.real_images, settings.steps, stage("generator")).generator
