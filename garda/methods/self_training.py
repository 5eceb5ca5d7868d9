"""A mean teacher on the target's images, with the source's weights now and then restored.

Wang et al., "Continual test-time domain adaptation" (CoTTA), CVPR 2022.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from garda.knowledge import Knowledge
from garda.lessons import FromTeacher, TeacherLessonSettings
from garda.methods.base import Method, Stages
from garda.slices import Slices
from garda.training import fit


class SelfTraining(Method[TeacherLessonSettings]):
    """One network that goes on from site to site: each stage's result is the averaged teacher."""

    Settings = TeacherLessonSettings

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """A student and its average, both from the segmenter as it is; what is restored are the stage-0 weights."""
        stage, lesson = stages("segmenter"), self.settings
        segmenter = fit(
            lambda: FromTeacher(copy.deepcopy(knowledge.segmenter), knowledge.teacher, self.task, lesson, self.compute),
            lambda step: slices.batch(step, lesson.batch, stage.seed),
            lesson.steps,
            stage,
        ).teacher
        return replace(knowledge, segmenter=segmenter, domains=(*knowledge.domains, domain))
