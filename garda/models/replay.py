"""Anatomies with their labels, drawn once and shown in any domain's style."""

import torch
from torch import Tensor, nn

from garda.models.generator import Anatomy, Generator
from garda.training.device import Compute


class Replay:
    """A pool of anatomies with their labels, drawn once, and images of them in any domain's style."""

    def __init__(self, generator: Generator, teacher: nn.Module, count: int, compute: Compute, batch: int = 64) -> None:
        """Draw the pool from torch's global generator.

        Args:
            generator: draws anatomies.
            teacher: (B, C, H, W) images to (B, K, H, W) logits; answers for anatomies in the source's style where the
                generator knows no labels.
            count: size of the pool.
            compute: device and precision.
            batch: anatomies drawn at once.
        """
        self.generator, self._compute = compute.prepare(generator).eval().requires_grad_(False), compute
        parts, labels = [], []
        with torch.no_grad(), compute.autocast():
            for start in range(0, count, batch):
                part = generator.draw(min(batch, count - start))
                known = generator.labels(part)
                if known is None:
                    source = torch.zeros(len(part.code), dtype=torch.long)
                    known = torch.softmax(teacher(generator.sample(part, source)).float(), dim=1)
                parts.append(part)
                labels.append(known.float())
        self._codes, self._labels = torch.cat([part.code for part in parts]), torch.cat(labels)
        self._noise = parts[0].noise  # of which shapes and device are read

    def batch(self, size: int, domain: int) -> tuple[Tensor, Tensor]:
        """Random members of the pool in a domain's style, with fresh noise.

        Returns:
            (size, C, H, W) images in [0, 1] and (size, K, H, W) label probabilities.
        """
        chosen = torch.randint(len(self._codes), (size,))
        fresh = tuple(torch.randn(size, *noise.shape[1:]).to(noise.device) for noise in self._noise)
        with torch.no_grad(), self._compute.autocast():
            image = self.generator.sample(Anatomy(self._codes[chosen], fresh), torch.full((size,), domain))
        return image.float(), self._labels[chosen]
