"""The families of generators as recipes: what is built, and which lessons it learns from, in which order."""

from __future__ import annotations

import copy

import torch
from monai.networks.nets import BasicUNet

from garda.config import Config
from garda.generators.adversarial import (
    FromImages,
    FromStyle,
    ImageLessonSettings,
    StyleLessonSettings,
)
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
from garda.training import Stage, fit


class StyleRecipeSettings(Config):
    """The published generator (GarDA, sections 3.2 and 3.3).

    Attributes:
        network: architecture.
        images: how it learns the source.
        style: how it learns a target's look.
        features: the frozen encoder in which looks are compared.
    """

    network: StyleSettings = StyleSettings()
    images: ImageLessonSettings = ImageLessonSettings()
    style: StyleLessonSettings = StyleLessonSettings()
    features: FeatureSettings = FeatureSettings()


class StyleRecipe(Recipe[StyleRecipeSettings, StyleGenerator]):
    """Adversarial learning of the source, then of each target's look with distillation of the older ones."""

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
                lambda: FromImages(self.task, domain, self.settings.network, lesson, self.compute),
                lambda step: slices.batch(step, lesson.batch, stage.seed),
                lesson.steps,
                stage,
            ).generator

        decides = self.settings.model_dump(mode="json", include={"network", "images"})
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

        learnt = fit(build, lambda step: slices.batch(step, lesson.batch, stage.seed), lesson.steps, stage)
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
            return fit(
                lambda: FromPairs(self.task, build(), teacher, lesson, self.compute),
                lambda step: slices.batch(step, lesson.batch, stage.seed),
                lesson.steps,
                stage,
            ).generator

        decides = self.settings.model_dump(mode="json", include={"network", "reconstruction"})
        decides["teacher"] = fingerprint(teacher)
        return stages.shelf.take("factorised", decides, stages("generator"), build, learn)

    def _learn_prior(self, generator: FactorisedGenerator, slices: Slices, stages: Stages) -> FlowPrior:
        lesson = self.settings.prior

        def build() -> FlowPrior:
            return self.build().prior

        def learn(stage: Stage) -> FlowPrior:
            return fit(
                lambda: FromCodes(self.task, generator.anatomy, build(), lesson, self.compute),
                lambda step: slices.batch(step, lesson.batch, stage.seed),
                lesson.steps,
                stage,
            ).prior

        decides = self.settings.model_dump(mode="json", include={"network", "prior"})
        decides["encoder"] = fingerprint(generator.anatomy)
        return self.compute.prepare(stages.shelf.take("prior", decides, stages("prior"), build, learn))

    def _survey(self, generator: FactorisedGenerator, slices: Slices, stage: Stage) -> None:
        lesson = self.settings.style
        seed = derive_seed(stage.seed, "survey")
        images = [slices.batch(step, lesson.batch, seed).image for step in range(lesson.estimate)]
        survey_look(generator, images, self.compute)
