"""GarDA as published: generative appearance replay (Chen et al., Medical Image Analysis 89, 102924, 2023)."""

from __future__ import annotations

import copy

import torch

from garda.config import Config
from garda.generators.adversarial import FromImages, FromStyle, ImageLessonSettings, StyleLessonSettings
from garda.generators.features import FeatureSettings, build_encoder
from garda.generators.style import Discriminator, StyleGenerator, StyleSettings
from garda.knowledge import Knowledge
from garda.methods.base import Method, Stages
from garda.segmenter import FromReplay, ReplayLessonSettings, build_segmenter
from garda.slices import Slices
from garda.training import fit


class GardaPaperSettings(Config):
    """The recipe.

    Attributes:
        generator: architecture.
        images: how the generator learns the source.
        style: how the generator learns a target's look.
        features: the frozen encoder in which looks are compared.
        replay: how the segmenter learns a target.
    """

    generator: StyleSettings = StyleSettings()
    images: ImageLessonSettings = ImageLessonSettings()
    style: StyleLessonSettings = StyleLessonSettings()
    features: FeatureSettings = FeatureSettings()
    replay: ReplayLessonSettings = ReplayLessonSettings()


class GardaPaper(Method[GardaPaperSettings]):
    """Learn looks with a generator; teach the segmenter on replayed images alone."""

    Settings = GardaPaperSettings

    def check(self) -> None:
        """Refuse widths that do not fit the task's size, and a feature encoder whose weights cannot be had."""
        settings, task = self.settings, self.task
        height, width = (side >> settings.features.halvings for side in task.size)
        with torch.device("meta"):
            self.build_generator()
            Discriminator(task.channels, task.size, settings.images.widths, ("any",))
            Discriminator(1, (height, width), settings.style.widths, ("any",))
        build_encoder(settings.features, build_segmenter(task, self.shared.segmenter))

    def build_generator(self) -> StyleGenerator:
        """An untrained style generator."""
        return StyleGenerator(self.task.channels, self.task.size, self.settings.generator)

    def learn_source(self, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Segmenter from labels, generator from images."""
        segmenter, teacher = self.learn_segmenter(slices, stages)
        stage, lesson = stages("generator"), self.settings.images
        learnt = fit(
            lambda: FromImages(self.task, domain, self.settings.generator, lesson, self.compute),
            lambda step: slices.batch(step, lesson.batch, stage.seed),
            lesson.steps,
            stage,
        )
        return Knowledge(segmenter, teacher, learnt.generator, (domain,))

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Generator from the target's look, then segmenter from replayed images of all domains seen."""
        previous, teacher = knowledge.generator, knowledge.teacher
        if not isinstance(previous, StyleGenerator):
            raise TypeError("garda_paper adapts a StyleGenerator")
        encoder = build_encoder(self.settings.features, teacher)
        stage, style = stages("generator"), self.settings.style
        generator = fit(
            lambda: FromStyle(self.task, domain, previous, encoder, style, self.compute),
            lambda step: slices.batch(step, style.real_images, stage.seed),
            style.steps,
            stage,
        ).generator
        replay = self.settings.replay
        learnt = fit(
            lambda: FromReplay(copy.deepcopy(knowledge.segmenter), teacher, generator, replay, self.compute),
            lambda step: None,
            replay.steps,
            stages("segmenter"),
        )
        segmenter = learnt.segmenter.eval().requires_grad_(False)
        return Knowledge(segmenter, teacher, generator, (*knowledge.domains, domain), knowledge.statistics)
