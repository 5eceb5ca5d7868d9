"""What replay needs of a generator, and what learns one.

A generator stands in for images that are gone: it draws anatomies and shows each in the style of any domain it has met.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from garda.core.config import Config
from garda.data.dataset import Slices
from garda.data.task import Task
from garda.training import loop
from garda.training.cache import Stage
from garda.training.device import Compute
from garda.training.loop import O, Phase


@dataclass(frozen=True)
class Anatomy:
    """A batch of anatomies: everything random about an image except its domain.

    Attributes:
        code: (B, L) or (B, L, h, w) latent code.
        noise: further standard normal tensors of B elements each.

    >>> import torch
    >>> anatomy = Anatomy(torch.zeros(4, 8), (torch.ones(4, 1, 16, 16),))
    >>> anatomy[:2].code.shape, anatomy[:2].noise[0].shape
    (torch.Size([2, 8]), torch.Size([2, 1, 16, 16]))
    """

    code: Tensor
    noise: tuple[Tensor, ...] = ()

    def __getitem__(self, part: slice | Tensor) -> Anatomy:
        """A part of the batch, by a slice or an index of the first dimension."""
        return Anatomy(self.code[part], tuple(noise[part] for noise in self.noise))


class Generator(nn.Module, ABC):
    """Draws images of any domain it has met.

    Attributes:
        domains: names of the domains met, in order; index 0 is the source.
    """

    domains: tuple[str, ...] = ()

    @abstractmethod
    def add_domain(self, name: str) -> None:
        """Make room for one more domain; what it draws for the others stays as it is."""

    @abstractmethod
    def draw(self, count: int) -> Anatomy:
        """``count`` random anatomies from torch's global generator, on the generator's device."""

    @abstractmethod
    def sample(self, anatomy: Anatomy, domains: Tensor) -> Tensor:
        """The anatomies as the given domains show them.

        Args:
            anatomy: B anatomies.
            domains: (B,) int64 indices into :attr:`domains`.

        Returns:
            (B, C, H, W) float32 in [0, 1].
        """

    def round_style(self) -> None:
        """Round what only the last domain uses to what float16 holds, in place; nothing where there is no such part."""
        return None

    def kept_state(self) -> dict[str, Tensor]:
        """The state as it is written: what was rounded takes half the room, and nothing is lost.

        Returns:
            Tensors by name, each of the shape that ``state_dict`` gives it, such as (K, C, H, W) for a convolution.
        """
        return self.state_dict()

    def labels(self, anatomy: Anatomy) -> Tensor | None:
        """The anatomies' label maps, (B, K, H, W) probabilities; None where a generator knows none."""
        return None


S = TypeVar("S", bound=Config)  # of all settings of a trainer
G = TypeVar("G", bound=Generator)


class GeneratorTrainer(ABC, Generic[S, G]):
    """Learns a generator of the source, and each target's style after it."""

    def __init__(self, task: Task, settings: S, compute: Compute) -> None:
        self.task, self.settings, self.compute = task, settings, compute

    @abstractmethod
    def build(self) -> G:
        """An untrained generator that has met no domain.

        Raises:
            ConfigError: settings that do not fit the task.
        """

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
    def learn_source(self, domain: str, slices: Slices, stage: Stage, teacher: BasicUNet) -> G:
        """A generator of the labelled source.

        Args:
            domain: its name.
            slices: its training slices, with labels.
            stage: gives the phases of training, and the cache.
            teacher: the source segmenter, frozen.

        Returns:
            The generator in evaluation mode, without gradients.
        """

    @abstractmethod
    def learn_style(self, previous: G, domain: str, slices: Slices, stage: Stage, teacher: BasicUNet) -> G:
        """A generator that also draws an unlabelled target; ``previous`` is left as it is."""

    def build_for(self, domain: str) -> G:
        """An untrained generator that has met one domain."""
        generator = self.build()
        generator.add_domain(domain)
        return generator

    def fit(self, objective: Callable[[], O], slices: Slices, batch: int, steps: int, phase: Phase) -> O:
        """Train an objective on batches of a domain's slices; errors as in :func:`garda.training.loop.fit`."""
        return loop.fit(objective, lambda step: slices.batch(step, batch, phase.seed), steps, phase)
