"""The factorised generator: a spatial code for anatomy, a short one for appearance, a branch for each domain's style.

Anatomy and appearance apart, after the spatial decomposition of Chartsias et al. (Medical Image Analysis 58, 101535,
2019). Image and label map are decoded from one anatomy, so that what is replayed carries its own label. One more
domain gets a branch of its own and never touches the decoder: older domains cannot be forgotten.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise

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
        decoder: anatomy code -> features of every resolution and label logits; the same for all domains.
        branches: a domain's style: features and appearance code -> image, one for each domain.
        prior: the distribution of anatomy codes.
        mean: (D, N) of each domain's appearance codes.
        factor: (D, N, N) Cholesky factors of their covariances.
        noise: (D,) standard deviations of what no code explains.

    >>> generator = FactorisedGenerator(1, 2, (16, 16), FactorisedSettings(widths=(4, 8), prior_width=8)).eval()
    >>> generator.add_domain("a")
    >>> with torch.no_grad():
    ...     anatomy = generator.draw(3)
    ...     image, label = generator.sample(anatomy, torch.zeros(3, dtype=torch.long)), generator.labels(anatomy)
    >>> image.shape, label.shape
    (torch.Size([3, 1, 16, 16]), torch.Size([3, 2, 16, 16]))
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
            what = f"{halvings + 1} resolutions and the prior's two do not halve {size[0]} x {size[1]} pixels evenly"
            raise ConfigError("generator.widths", what, "change the number of widths, or the task's size")
        self.size, self.code_size = size, (size[0] >> halvings, size[1] >> halvings)
        self.channels, self.widths, self.length = channels, settings.widths, settings.appearance
        self.anatomy = AnatomyEncoder(channels, settings.widths, settings.code)
        self.appearance = AppearanceEncoder(channels, settings.appearance)
        self.decoder = Decoder(settings.code, settings.widths, classes)
        self.branches = nn.ModuleList()
        self.prior = FlowPrior(settings.code, settings.prior_width)
        self.mean: Tensor = nn.Buffer(torch.empty(0, self.length))
        self.factor: Tensor = nn.Buffer(torch.empty(0, self.length, self.length))
        self.noise: Tensor = nn.Buffer(torch.empty(0))

    def add_domain(self, name: str) -> None:
        """A branch that starts as a copy of the source's, and the source's distribution of appearance."""
        first = not self.branches
        branch = Branch(self.channels, self.widths, self.length) if first else copy.deepcopy(self.branches[0])
        self.branches.append(branch)
        new = {"mean": torch.zeros(1, self.length), "factor": torch.eye(self.length)[None], "noise": torch.zeros(1)}
        for part, row in new.items():
            old = getattr(self, part)
            setattr(self, part, torch.cat([old, row.to(old.device) if first else old[:1]]))
        self.domains = (*self.domains, name)

    def round_style(self) -> None:
        """Round the last domain's branch to what float16 holds; never the source's, with which every other begins."""
        if len(self.branches) > 1:
            weights.round_weights(self.branches[-1])

    def kept_state(self) -> dict[str, Tensor]:
        """The state, the targets' branches as float16, tensor by tensor, where nothing is lost."""
        state, targets = self.state_dict(), tuple(f"branches.{index}." for index in range(1, len(self.branches)))
        return state | {name: weights.halve(value) for name, value in state.items() if name.startswith(targets)}

    def draw(self, count: int) -> Anatomy:
        """Codes from the prior; as noise the appearance's (B, N, 1, 1) and the image's (B, C, H, W)."""
        code = self.prior.draw(count, self.code_size)
        shapes = (self.length, 1, 1), (self.channels, *self.size)
        return Anatomy(code, tuple(torch.randn(count, *shape).to(self.mean.device) for shape in shapes))

    def sample(self, anatomy: Anatomy, domains: Tensor) -> Tensor:
        """Each anatomy with an appearance from its domain's normal distribution, and the domain's noise.

        Returns:
            (B, C, H, W) float32 in [0, 1].
        """
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
    """(B, C, H, W) in [0, 1] to the (B, code, h, w) anatomy code, each channel of mean 0 and variance 1."""

    def __init__(self, channels: int, widths: Sequence[int], code: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise([channels, *widths]):
            layers += [nn.AvgPool2d(2), _block(before, width), _block(width, width)]
        self.layers = nn.Sequential(*layers[1:], nn.Conv2d(widths[-1], code, 1))
        self.norm = BatchNorm2d(code, affine=False)

    def forward(self, image: Tensor) -> Tensor:
        """The code, float32; an image's own mean and contrast are taken out first."""
        mean, deviation = image.mean(dim=(1, 2, 3), keepdim=True), image.std(dim=(1, 2, 3), keepdim=True)
        return self.norm(self.layers((image - mean) / (deviation + 0.02)).float())


class AppearanceEncoder(nn.Module):
    """(B, C, H, W) in [0, 1] to (B, N), from means and deviations of features and from quantiles of the intensities."""

    WIDTHS = (16, 32, 64)

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise([channels, *self.WIDTHS]):
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
    """(B, code, h, w) to features of every resolution, the coarsest first, and (B, K, H, W) label logits."""

    def __init__(self, code: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        up = widths[::-1]
        self.first = _block(code, up[0])
        self.levels = nn.ModuleList(nn.Sequential(_block(i, o), _block(o, o)) for i, o in pairwise(up))
        self.label = nn.Conv2d(up[-1], classes, 1)

    def forward(self, code: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features and logits."""
        features = [self.first(code)]
        for level in self.levels:
            features.append(level(_double(features[-1])))
        return features, self.label(features[-1]).float()


class Branch(nn.Module):
    """One domain's style: the decoder's features to the image, modulated by an appearance code."""

    def __init__(self, channels: int, widths: Sequence[int], length: int) -> None:
        super().__init__()
        up = widths[::-1]
        inputs = [up[0], *map(sum, pairwise(up)), up[-1]]
        pairs = zip(inputs, [*up, up[-1]], strict=True)
        self.layers = nn.ModuleList(ModulatedConvolution(before, width, length) for before, width in pairs)
        self.last = nn.Conv2d(up[-1], channels, 1)

    def forward(self, features: Sequence[Tensor], style: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1] from the decoder's features and (B, N)."""
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
        return F.leaky_relu_(self.convolution(x) * (1 + scale) + shift, SLOPE)  # Perez et al., equation 2


def _block(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(convolution, BatchNorm2d(outputs), nn.LeakyReLU(SLOPE, inplace=True))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
