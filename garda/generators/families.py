"""The families of generators as recipes: what is built, and which lessons it learns from, in which order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from garda.compute import Compute
from garda.config import Config
from garda.generators.adversarial import (
    FromImages,
    FromStyle,
    ImageLessonSettings,
    StyleLessonSettings,
    feature_shape,
)
from garda.generators.base import Generator
from garda.generators.factorised import FactorisedGenerator, FactorisedSettings
from garda.generators.features import FeatureSettings, build_encoder
from garda.generators.prior import FlowPrior
from garda.generators.prior_lesson import FromCodes, PriorLessonSettings
from garda.generators.recipe import Recipe
from garda.generators.reconstruction import (
    FromLook,
    FromPairs,
    LookLessonSettings,
    PairLessonSettings,
    survey_look,
)
from garda.generators.style import Discriminator, StyleGenerator, StyleSettings
from garda.seeds import derive_seed
from garda.shelf import Stages, fingerprint
from garda.slices import Slices
from garda.task import Task
from garda.training import Stage, fit, read_state


class StyleRecipeSettings(Config):
    """The published generator (GarDA, sections 3.2 and 3.3).

    Attributes:
        generator: architecture.
        images: how it learns the source.
        style: how it learns a target's look.
        features: the frozen encoder in which looks are compared.
    """

    generator: StyleSettings = StyleSettings()
    images: ImageLessonSettings = ImageLessonSettings()
    style: StyleLessonSettings = StyleLessonSettings()
    features: FeatureSettings = FeatureSettings()


class StyleRecipe(Recipe[StyleRecipeSettings, StyleGenerator]):
    """Adversarial learning of the source, then of each target's look with distillation of the older ones."""

    def build(self) -> StyleGenerator:
        """An untrained style generator."""
        return StyleGenerator(self.task.channels, self.task.size, self.settings.generator)

    def check(self, segmenter: BasicUNet) -> None:
        """Refuse widths that do not fit the task's size, and a feature encoder whose weights cannot be had."""
        settings, task = self.settings, self.task
        height, width = (side >> settings.features.halvings for side in task.size)
        with torch.device("meta"):
            self.build()
            Discriminator(task.channels, task.size, settings.images.widths, ("any",))
            Discriminator(1, (height, width), settings.style.widths, ("any",))
        build_encoder(settings.features, segmenter)

    def learn_source(self, domain: str, slices: Slices, stages: Stages, teacher: BasicUNet) -> StyleGenerator:
        """From the source's images; labels and teacher are not looked at."""
        lesson = self.settings.images

        def build() -> StyleGenerator:
            generator = self.build()
            generator.add_domain(domain)
            return generator

        def learn(stage: Stage) -> StyleGenerator:
            return fit(
                lambda: FromImages(self.task, domain, self.settings.generator, lesson, self.compute),
                lambda step: slices.batch(step, lesson.batch, stage.seed),
                lesson.steps,
                stage,
            ).generator

        decides = self.settings.model_dump(mode="json", include={"generator", "images"})
        return stages.shelf.take("style", decides, stages("generator"), build, learn)

    def learn_look(
        self, previous: StyleGenerator, domain: str, slices: Slices, stages: Stages, teacher: BasicUNet
    ) -> StyleGenerator:
        """From the features of the target's images."""
        encoder = build_encoder(self.settings.features, teacher)
        stage, lesson = stages("generator"), self.settings.style
        return fit(
            lambda: FromStyle(self.task, domain, previous, encoder, lesson, self.compute),
            lambda step: slices.batch(step, lesson.real_images, stage.seed),
            lesson.steps,
            stage,
        ).generator

    def read_discriminator(
        self, generator: StyleGenerator, domain: str, teacher: BasicUNet, training: Path
    ) -> Callable[[Tensor], Tensor] | None:
        """Of images in the source's stage, of their features in a target's."""
        state = read_state(training / "generator", "discriminator")
        if state is None:
            return None
        index = generator.domains.index(domain)
        see: Callable[[Tensor], Tensor] = nn.Identity()
        if index == 0:
            discriminator = Discriminator(
                self.task.channels, self.task.size, self.settings.images.widths, generator.domains[:1]
            )
        else:
            see = self.compute.prepare(build_encoder(self.settings.features, teacher))
            channels, *size = feature_shape(see, self.task, self.compute)
            widths, domains = self.settings.style.widths, generator.domains[: index + 1]
            discriminator = Discriminator(channels, (size[0], size[1]), widths, domains)
        discriminator.load_state_dict(state)
        judge = self.compute.prepare(discriminator).eval()
        return lambda image: judge(see(image), torch.full((len(image),), index))


class FactorisedRecipeSettings(Config):
    """The factorised generator.

    Attributes:
        generator: architecture.
        pairs: how it learns the source's images and labels.
        prior: how it learns which anatomies there are.
        look: how it learns a target's look.
    """

    generator: FactorisedSettings = FactorisedSettings()
    pairs: PairLessonSettings = PairLessonSettings()
    prior: PriorLessonSettings = PriorLessonSettings()
    look: LookLessonSettings = LookLessonSettings()


class FactorisedRecipe(Recipe[FactorisedRecipeSettings, FactorisedGenerator]):
    """Reconstruction of the source and a prior over its anatomy, then a branch for each target's look."""

    def build(self) -> FactorisedGenerator:
        """An untrained factorised generator."""
        return FactorisedGenerator(self.task.channels, len(self.task.classes), self.task.size, self.settings.generator)

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
        stage, lesson = stages("generator"), self.settings.look

        def build() -> FromLook:
            generator = copy.deepcopy(previous)
            generator.add_domain(domain)
            return FromLook(self.task, generator, teacher, lesson, self.compute)

        learnt = fit(build, lambda step: slices.batch(step, lesson.batch, stage.seed), lesson.steps, stage)
        generator: FactorisedGenerator = learnt.generator.eval().requires_grad_(False)
        self._survey(generator, slices, stage)
        return generator

    def _learn_pairs(self, domain: str, slices: Slices, stages: Stages, teacher: BasicUNet) -> FactorisedGenerator:
        lesson = self.settings.pairs

        def build() -> FactorisedGenerator:
            generator = self.build()
            generator.add_domain(domain)
            return generator

        def learn(stage: Stage) -> FactorisedGenerator:
            return fit(
                lambda: FromPairs(self.task, build(), teacher, lesson, self.compute),
                lambda step: slices.batch(step, lesson.batch, stage.seed),
                lesson.steps,
                stage,
            ).generator

        decides = self.settings.model_dump(mode="json", include={"generator", "pairs"})
        decides["teacher"] = fingerprint(teacher)
        return stages.shelf.take("factorised", decides, stages("generator"), build, learn)

    def _learn_prior(self, generator: FactorisedGenerator, slices: Slices, stages: Stages) -> FlowPrior:
        lesson = self.settings.prior

        def build() -> FlowPrior:
            return self.build().prior

        def learn(stage: Stage) -> FlowPrior:
            return fit(
                lambda: FromCodes(self.task, generator, build(), lesson, self.compute),
                lambda step: slices.batch(step, lesson.batch, stage.seed),
                lesson.steps,
                stage,
            ).prior

        decides = self.settings.model_dump(mode="json", include={"generator", "prior"})
        decides["encoder"] = fingerprint(generator.anatomy)
        return self.compute.prepare(stages.shelf.take("prior", decides, stages("prior"), build, learn))

    def _survey(self, generator: FactorisedGenerator, slices: Slices, stage: Stage) -> None:
        lesson = self.settings.look
        seed = derive_seed(stage.seed, "survey")
        images = [slices.batch(step, lesson.batch, seed).image for step in range(lesson.survey)]
        survey_look(generator, images, self.compute)


class GeneratorSettings(Config):
    """Which family of generators stands in for images that are gone.

    Attributes:
        family: ``factorised``, or ``style``, the published one.
        factorised: the factorised generator's recipe.
        style: the style generator's recipe.
    """

    family: Literal["factorised", "style"] = "factorised"
    factorised: FactorisedRecipeSettings = FactorisedRecipeSettings()
    style: StyleRecipeSettings = StyleRecipeSettings()


def build_recipe(task: Task, settings: GeneratorSettings, compute: Compute) -> Recipe[Config, Generator]:
    """The chosen family's recipe."""
    recipe = GENERATORS[settings.family]
    return recipe(task, getattr(settings, settings.family), compute)


GENERATORS: dict[str, type[Recipe]] = {"factorised": FactorisedRecipe, "style": StyleRecipe}
