"""The factorised generator: a spatial code for anatomy, a short one for appearance, a branch for each domain's look.

Anatomy and appearance apart, after the spatial decomposition of Chartsias et al. (Medical Image Analysis 58, 101535,
2019). Image and label map are decoded from one anatomy, so that what is replayed carries its own label. One more
domain gets its own appearance branch and never touches what is shared: older domains cannot be forgotten.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from functools import partial

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.config import Config
from garda.core.errors import ConfigError
from garda.models.flow_prior import FlowPrior
from garda.models.generator import Anatomy, Generator
from garda.training import weights
from garda.training.sharding import BatchNorm1d, BatchNorm2d

SLOPE = 0.2  # of the leaky ReLU, everywhere
QUANTILES = 8  # of each channel's intensities, which the appearance encoder is told


class FactorisedSettings(Config):
    """Architecture.

    Attributes:
        code: channels of the anatomy code, whose sides are the image's / 2^(number of widths - 1).
        appearance: N, length of the appearance code.
        widths: channels of each resolution, from the image's own to the code's.
        prior_width: channels of the prior's first resolution.
    """

    code: PositiveInt = 4
    appearance: PositiveInt = 12
    widths: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=2)
    prior_width: PositiveInt = Field(default=48, multiple_of=8)


class FactorisedGenerator(Generator):
    """Draws an anatomy from the prior and shows it as any domain would, with its label map.

    Attributes:
        anatomy: image -> anatomy code, blind to appearance.
        appearance: image -> appearance code.
        trunk: anatomy code -> features of every resolution and label logits; the same for all domains.
        branches: a domain's look: features and appearance code -> image, one for each domain.
        prior: the distribution of anatomy codes.
    """

    def __init__(self, channels: int, classes: int, size: tuple[int, int], settings: FactorisedSettings) -> None:
        """An untrained generator that has met no domain.

        Args:
            channels: image channels.
            classes: K, the background included.
            size: (H, W) of the image.
            settings: architecture.

        Raises:
            ConfigError: the number of resolutions does not fit the size.
        """
        super().__init__()
        halvings = len(settings.widths) - 1
        if any(side % (4 << halvings) for side in size):
            raise ConfigError(
                "generator.widths",
                f"{halvings + 1} resolutions and the prior's two do not halve {size[0]} x {size[1]} pixels evenly",
                "change the number of widths, or the task's size",
            )
        self.domains = ()
        self.size, self.code_size = size, (size[0] >> halvings, size[1] >> halvings)
        self.channels, self.length = channels, settings.appearance
        self.anatomy = AnatomyEncoder(channels, settings.widths, settings.code)
        self.appearance = AppearanceEncoder(channels, settings.appearance)
        self.decoder = Decoder(settings.code, settings.widths, classes)
        self.branches = nn.ModuleList()
        self.prior = FlowPrior(settings.code, settings.prior_width)
        self.mean: Tensor
        self.factor: Tensor
        self.noise: Tensor
        self.register_buffer("mean", torch.empty(0, self.length))  # of a domain's appearance codes
        self.register_buffer("factor", torch.empty(0, self.length, self.length))  # Cholesky factor of their covariance
        self.register_buffer("noise", torch.empty(0))  # standard deviation of what no code explains
        self._build_branch = partial(Branch, channels, settings.widths, settings.appearance)

    def add_domain(self, name: str) -> None:
        """A branch that starts as a copy of the source's, and the source's statistics of appearance."""
        first = not self.branches
        self.branches.append(self._build_branch() if first else copy.deepcopy(self.branches[0]))
        new = (torch.zeros(1, self.length), torch.eye(self.length)[None], torch.zeros(1))
        old = (self.mean, self.factor, self.noise)
        grown = [torch.cat([o, (n.to(o.device) if first else o[:1])]) for o, n in zip(old, new, strict=True)]
        self.mean, self.factor, self.noise = grown
        self.domains = (*self.domains, name)

    def round_style(self) -> None:
        """The last domain's branch; never the source's, with which every other one begins."""
        if len(self.branches) > 1:
            weights.round_weights(self.branches[-1])

    def kept_state(self) -> dict[str, Tensor]:
        """The targets' branches as float16, tensor by tensor, where nothing is lost."""
        state = self.state_dict()
        rounded = [name for name in state if name.startswith("branches.") and not name.startswith("branches.0.")]
        return state | {name: weights.halve(state[name]) for name in rounded}

    def draw(self, count: int) -> Anatomy:
        """Codes from the prior; as noise the appearance's (B, N, 1, 1) and the image's (B, C, H, W)."""
        device = self.mean.device
        code = self.prior.draw(count, self.code_size)
        noise = torch.randn(count, self.length, 1, 1), torch.randn(count, self.channels, *self.size)
        return Anatomy(code, (noise[0].to(device), noise[1].to(device)))

    def sample(self, anatomy: Anatomy, domains: Tensor) -> Tensor:
        """Each anatomy with an appearance drawn from its domain's, and the domain's noise."""
        features, _ = self.decoder(anatomy.code)
        image = torch.empty(len(anatomy.code), self.channels, *self.size, device=anatomy.code.device)
        for domain in domains.unique().tolist():
            chosen = (domains == domain).to(image.device)
            normal, noise = (part[chosen] for part in anatomy.noise)
            style = self.mean[domain] + normal.flatten(1) @ self.factor[domain].T
            shown = self.branches[domain]([part[chosen] for part in features], style)
            image[chosen] = (shown + noise * self.noise[domain]).clamp(0, 1)
        return image

    def labels(self, anatomy: Anatomy) -> Tensor:
        """The anatomies' own label maps, (B, K, H, W) probabilities."""
        return torch.softmax(self.decoder(anatomy.code)[1], dim=1)


class AnatomyEncoder(nn.Module):
    """(B, C, H, W) to the anatomy code, each of whose channels has mean 0 and variance 1 over the training images."""

    def __init__(self, channels: int, widths: Sequence[int], code: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, width) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
            layers += [nn.AvgPool2d(2)] if index else []
            layers += [_block(before, width), _block(width, width)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], code, 1))
        self.norm = BatchNorm2d(code, affine=False)

    def forward(self, image: Tensor) -> Tensor:
        """The code, float32; an image's own mean and contrast are taken out first."""
        mean, deviation = image.mean(dim=(1, 2, 3), keepdim=True), image.std(dim=(1, 2, 3), keepdim=True)
        return self.norm(self.layers((image - mean) / (deviation + 0.02)).float())


class AppearanceEncoder(nn.Module):
    """(B, C, H, W) to (B, N), from the means and deviations of features and from quantiles of the intensities."""

    WIDTHS = (16, 32, 64)

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip([channels, *self.WIDTHS[:-1]], self.WIDTHS, strict=True):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(2 * self.WIDTHS[-1] + QUANTILES * channels, length)
        self.norm = BatchNorm1d(length, affine=False)

    def forward(self, image: Tensor) -> Tensor:
        """The code, float32."""
        features = self.layers(image).float().flatten(2)
        levels = torch.linspace(0.02, 0.98, QUANTILES, device=image.device)
        some = image.float().flatten(2)[:, :, ::7]  # quantiles need a sort, and every seventh pixel gives them
        quantiles = torch.quantile(some, levels, dim=2).permute(1, 2, 0).flatten(1)
        return self.norm(self.last(torch.cat([features.mean(2), features.std(2), quantiles], dim=1)).float())


class Decoder(nn.Module):
    """The anatomy code to features of every resolution, the coarsest first, and (B, K, H, W) label logits."""

    def __init__(self, code: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        up = list(reversed(widths))
        self.first = _block(code, up[0])
        self.levels = nn.ModuleList(
            nn.Sequential(_block(before, width), _block(width, width)) for before, width in itertools.pairwise(up)
        )
        self.label = nn.Conv2d(up[-1], classes, 1)

    def forward(self, code: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features and logits."""
        features = [self.first(code)]
        for level in self.levels:
            features.append(level(_double(features[-1])))
        return features, self.label(features[-1]).float()


class Branch(nn.Module):
    """One domain's look: the trunk's features to the image, modulated by an appearance code."""

    def __init__(self, channels: int, widths: Sequence[int], length: int) -> None:
        super().__init__()
        up = list(reversed(widths))
        inputs = [up[0], *(before + width for before, width in itertools.pairwise(up)), up[-1]]
        self.layers = nn.ModuleList(
            ModulatedConvolution(before, width, length) for before, width in zip(inputs, [*up, up[-1]], strict=True)
        )
        self.last = nn.Conv2d(up[-1], channels, 1)

    def forward(self, features: Sequence[Tensor], style: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1] from the trunk's features and (B, N)."""
        first, *middle, last = self.layers
        x = first(features[0], style)
        for layer, feature in zip(middle, features[1:], strict=True):
            x = layer(torch.cat([_double(x), feature], dim=1), style)
        return torch.sigmoid(self.last(last(x, style)).float())


class ModulatedConvolution(nn.Module):
    """A convolution whose output the appearance code scales and shifts (Perez et al., AAAI 2018, FiLM)."""

    def __init__(self, inputs: int, outputs: int, length: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(length, 2 * outputs)
        nn.init.normal_(self.modulation.weight, std=0.05)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, N) to (B, outputs, H, W)."""
        scale, shift = self.modulation(style)[:, :, None, None].chunk(2, dim=1)
        return F.leaky_relu_(self.convolution(x) * (1 + scale) + shift, SLOPE)


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), BatchNorm2d(outputs), nn.LeakyReLU(SLOPE, inplace=True)
    )


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
