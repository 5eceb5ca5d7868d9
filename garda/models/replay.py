"""Anatomies with their labels, drawn once and shown in any domain's style."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from garda.models.generator import Anatomy, Generator
from garda.training.device import Compute


class Replay:
    """A pool of anatomies with their labels, drawn once, and images of them in any domain's look."""

    def __init__(self, generator: Generator, teacher: nn.Module, count: int, compute: Compute, batch: int = 64) -> None:
        """Draw the pool from torch's global generator.

        Args:
            generator: draws anatomies.
            teacher: answers for anatomies in the source's look where the generator knows no labels.
            count: size of the pool.
            compute: device and precision.
            batch: anatomies drawn at once.
        """
        self.generator, self._compute = compute.prepare(generator).eval().requires_grad_(False), compute
        self._parts: list[Anatomy] = []
        labels: list[Tensor] = []
        with torch.no_grad(), compute.autocast():
            for start in range(0, count, batch):
                part = generator.draw(min(batch, count - start))
                known = generator.labels(part)
                if known is None:
                    source = torch.zeros(len(part.code), dtype=torch.long)
                    known = torch.softmax(teacher(generator.sample(part, source)).float(), dim=1)
                self._parts.append(part)
                labels.append(known.float())
        self._codes = torch.cat([part.code for part in self._parts])
        self._labels = torch.cat(labels)

    def batch(self, size: int, domain: int) -> tuple[Tensor, Tensor]:
        """Random members of the pool in a domain's look: (size, C, H, W) in [0, 1], (size, K, H, W) probabilities."""
        chosen = torch.randint(len(self._codes), (size,))
        fresh = [torch.randn(size, *noise.shape[1:]).to(noise.device) for noise in self._parts[0].noise]
        with torch.no_grad(), self._compute.autocast():
            image = self.generator.sample(Anatomy(self._codes[chosen], tuple(fresh)), torch.full((size,), domain))
        return image.float(), self._labels[chosen]
