"""How a family of generators learns: what a method that replays needs of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from monai.networks.nets import BasicUNet

from garda.compute import Compute
from garda.config import Config
from garda.generators.base import Generator
from garda.shelf import Stages
from garda.slices import Slices
from garda.task import Task

S = TypeVar("S", bound=Config)
G = TypeVar("G", bound=Generator)


class Recipe(ABC, Generic[S, G]):
    """Learns a generator from the source and each target's look after it."""

    def __init__(self, task: Task, settings: S, compute: Compute) -> None:
        self.task, self.settings, self.compute = task, settings, compute

    @abstractmethod
    def build(self) -> G:
        """An untrained generator that has met no domain."""

    @abstractmethod
    def check(self, segmenter: BasicUNet) -> None:
        """Refuse, before anything is learnt, what could only fail hours later.

        Args:
            segmenter: an untrained one.

        Raises:
            ConfigError: settings that do not fit the task.
            CheckpointError: weights that are asked for and cannot be had.
        """

    @abstractmethod
    def learn_source(self, domain: str, slices: Slices, stages: Stages, teacher: BasicUNet) -> G:
        """A generator of the labelled source.

        Args:
            domain: its name.
            slices: its training slices, with labels.
            stages: the pieces of training.
            teacher: the source segmenter, frozen.
        """

    @abstractmethod
    def learn_look(self, previous: G, domain: str, slices: Slices, stages: Stages, teacher: BasicUNet) -> G:
        """A generator that also draws an unlabelled target; ``previous`` is left as it is."""
