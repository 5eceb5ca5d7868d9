"""Several networks as one, and one that is shown enlarged images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEP = 16  # a network's sides are multiples of it


class Ensemble(nn.Module):
    """The mean of several networks' probabilities.

    >>> network = Ensemble([nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)])
    >>> bool(torch.isclose(network(torch.rand(1, 1, 4, 4)).exp().sum(), torch.tensor(16.0)))
    True
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to the (B, K, H, W) logarithms of the mean probabilities."""
        found = [torch.softmax(network(image).float(), dim=1) for network in self.networks]
        return torch.stack(found).mean(dim=0).clamp_min(1e-8).log()


class Zoomed(nn.Module):
    """A network that is shown enlarged images."""

    def __init__(self, network: nn.Module, zoom: float) -> None:
        super().__init__()
        self.network, self.zoom = network, zoom

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, H, W) logits."""
        logits = self.network(resize(image, self.zoom)).float()
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def resize(image: Tensor, zoom: float) -> Tensor:
    """(B, C, H, W) at sides that a network takes, as near as can be to ``zoom`` times the image's."""
    sides = [max(STEP, round(side * zoom / STEP) * STEP) for side in image.shape[-2:]]
    if sides == list(image.shape[-2:]):
        return image
    return F.interpolate(image, size=sides, mode="bilinear", align_corners=False, antialias=True)
