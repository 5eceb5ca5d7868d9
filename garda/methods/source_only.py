"""The lower bound: learn the source, then change nothing."""

from __future__ import annotations

from dataclasses import replace

from garda.config import Config
from garda.knowledge import Knowledge
from garda.methods.base import Method, Stages
from garda.slices import Slices


class SourceOnlySettings(Config):
    """Nothing to set."""


class SourceOnly(Method[SourceOnlySettings]):
    """The source segmenter, carried along unchanged."""

    Settings = SourceOnlySettings

    def learn_source(self, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Learn the segmenter from the source's labels."""
        segmenter, teacher = self.learn_segmenter(slices, stages)
        return Knowledge(segmenter, teacher, None, (domain,))

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stages: Stages) -> Knowledge:
        """Note the domain's name; learn nothing."""
        return replace(knowledge, domains=(*knowledge.domains, domain))
