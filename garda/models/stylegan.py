"""The style generator and its discriminator, conditioned on the domain (GarDA, section 3.2; Karras et al. 2019).

Weights have equalised learning rates (Karras et al. 2018, section 4.1): stored with unit variance, scaled by the
layer's fan-in when used.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.config import Config
from garda.core.errors import ConfigError
from garda.core.seeds import derive_seed
from garda.models.generator import Anatomy, Generator
from garda.training import distributed, sharding

SLOPE = 0.2  # of the leaky ReLU, everywhere
PROJECTION = 128  # width of the conditional projection
EMBEDDING = 256  # width of the domain embedding


class StyleSettings(Config):
    """Architecture of the generator.

    Attributes:
        latent: L, length of the anatomy code and width of the mapping network.
        widths: for each resolution, from the lowest, the output channels of its convolutions; every further
            resolution doubles the side, so the lowest is the image's side / 2^(n - 1).
    """

    latent: PositiveInt = 128
    widths: tuple[Annotated[tuple[PositiveInt, ...], Field(min_length=1)], ...] = Field(
        default=((128, 128), (128,), (64,), (32,), (16,)), min_length=1
    )


class StyleGenerator(Generator):
    """Maps (code, domain) to a style that modulates every convolution of a synthesis network.

    Each convolution's input is scaled and shifted by the style (AdaIN without the normalisation), and per-pixel noise
    is added to its output. Drawing one domain never reads another domain's row of the embedding.

    >>> generator = StyleGenerator(1, (16, 16), StyleSettings(latent=8, widths=((8,), (4,)))).eval()
    >>> generator.add_domain("a")
    >>> generator.sample(generator.draw(3), torch.zeros(3, dtype=torch.long)).shape
    torch.Size([3, 1, 16, 16])
    """

    def __init__(self, channels: int, size: tuple[int, int], settings: StyleSettings) -> None:
        """An untrained generator that has met no domain.

        Args:
            channels: image channels.
            size: (H, W) of the image, multiples of 2^(number of resolutions - 1), at least twice that.
            settings: architecture.

        Raises:
            ConfigError: the widths do not fit the size.
        """
        super().__init__()
        self.latent = settings.latent
        ups = len(settings.widths) - 1
        base = (size[0] >> ups, size[1] >> ups)
        if (base[0] << ups, base[1] << ups) != size or min(base) < 2:
            what = f"{ups + 1} resolutions cannot draw {size[0]} x {size[1]} pixels"
            raise ConfigError("generator.widths", what, "change the number of resolutions, or the task's size")
        self.embedding = nn.Parameter(torch.empty(0, EMBEDDING))
        self.map_in = EqualLinear(self.latent + EMBEDDING, self.latent, rate=0.01)
        self.map_out = EqualLinear(self.latent, self.latent, rate=0.01)
        self.constant = nn.Parameter(torch.ones(1, settings.widths[0][0], *base))
        self.sizes = [(base[0] << level, base[1] << level) for level, some in enumerate(settings.widths) for _ in some]
        widths = [width for some in settings.widths for width in some]
        self.layers = nn.ModuleList(StyledConvolution(i, o, self.latent) for i, o in pairwise([widths[0], *widths]))
        self.image = StyledConvolution(widths[-1], channels, self.latent, noisy=False)

    def add_domain(self, name: str) -> None:
        """One more row of the embedding, standard normal, seeded by the domain's name."""
        row = _named_row("embedding", name, EMBEDDING).to(self.embedding.device)
        self.embedding = nn.Parameter(torch.cat([self.embedding.detach(), row]))
        self.domains = (*self.domains, name)

    def draw(self, count: int) -> Anatomy:
        """Standard normal (B, L) codes and a (B, 1, h, w) noise map for each convolution."""
        device = self.constant.device
        noise = tuple(torch.randn(count, 1, *size).to(device) for size in self.sizes)
        return Anatomy(torch.randn(count, self.latent).to(device), noise)

    def sample(self, anatomy: Anatomy, domains: Tensor) -> Tensor:
        """What :meth:`forward` draws, cut to [0, 1]: (B, C, H, W) float32."""
        return self(anatomy, domains).clamp(0, 1)

    def forward(self, anatomy: Anatomy, domains: Tensor) -> Tensor:
        """(B, C, H, W) float32, about [0, 1] but not cut: a cut would stop the gradient."""
        domain = self.embedding[domains.to(self.embedding.device)]
        style = F.leaky_relu(self.map_in(torch.cat([anatomy.code, domain], dim=1)), SLOPE)
        style = F.leaky_relu(self.map_out(style), SLOPE)
        x = self.constant.expand(len(anatomy.code), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        for layer, noise in zip(self.layers, anatomy.noise, strict=True):
            if noise.shape[-1] > x.shape[-1]:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu_(layer(x, style, noise), SLOPE)
        return self.image(x, style).float()


class Discriminator(nn.Module):
    """Judges images or feature maps of a domain by projection (Miyato and Koyama 2018, equation 3).

    A minibatch standard deviation map joins the last features (Karras et al. 2018, section 3).
    """

    def __init__(self, channels: int, size: tuple[int, int], widths: Sequence[int], domains: Sequence[str]) -> None:
        """An untrained discriminator.

        Args:
            channels: channels of what is judged.
            size: (H, W) of what is judged.
            widths: output channels of each convolution; all but the last are followed by 2x2 average pooling.
            domains: names of the domains, each seeding its row of the projection.

        Raises:
            ConfigError: there are more halvings than the size has.
        """
        super().__init__()
        self.layers = nn.ModuleList(EqualConvolution(i, o) for i, o in pairwise([channels, *widths]))
        last = (size[0] >> (len(widths) - 1), size[1] >> (len(widths) - 1))
        if min(last) < 1:
            what = f"{len(widths)} convolutions are too many for {size[0]} x {size[1]}"
            raise ConfigError("discriminator widths", what, "give fewer")
        self.final = EqualConvolution(widths[-1] + 1, widths[-1])
        self.dense = EqualLinear(widths[-1] * last[0] * last[1], widths[-1])
        self.logits = EqualLinear(widths[-1], PROJECTION)
        self.projection = nn.Parameter(torch.cat([_named_row("projection", name, PROJECTION) for name in domains]))

    def forward(self, x: Tensor, domains: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) domain indices to (B,) float32 logits: positive means real."""
        for index, layer in enumerate(self.layers):
            x = F.leaky_relu_(layer(F.avg_pool2d(x, 2) if index else x), SLOPE)
        x = torch.cat([x, minibatch_deviation(x).to(x.dtype)], dim=1)
        x = F.leaky_relu_(self.final(x), SLOPE)
        x = self.logits(F.leaky_relu(self.dense(x.flatten(1)), SLOPE))
        return (x.float() * self.projection[domains.to(x.device)]).sum(dim=1) / math.sqrt(PROJECTION)  # equation 3


def r1_penalty(discriminator: Callable[[Tensor, Tensor], Tensor], real: Tensor, domains: Tensor) -> Tensor:
    """Mean squared norm of D's gradient at real data, in float32 (Mescheder et al. 2018, equation 9).

    Args:
        discriminator: (B, C, H, W) and (B,) domain indices to (B,) logits.
        real: (B, C, H, W) images or features.
        domains: (B,) their domains.

    Returns:
        A scalar, without the factor gamma / 2; differentiable with respect to the discriminator.

    >>> float(r1_penalty(lambda x, domains: 3 * x.sum((1, 2, 3)), torch.rand(4, 1, 2, 2), torch.zeros(4)))
    36.0
    """
    real = real.detach().float().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(real, domains).sum(), real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def minibatch_deviation(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H, W), filled with the standard deviation over the whole batch.

    It is averaged over channels and pixels (Karras et al. 2018, section 3); of all processes where several learn.

    >>> minibatch_deviation(torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 2.0)]))[:, 0, 0, 0]
    tensor([1., 1.])
    """
    wide = x.float()
    if distributed.world_size() == 1:
        variance = wide.var(dim=0, unbiased=False)
    else:
        variance = sharding.mean((wide - sharding.mean(wide.mean(dim=0))).square().mean(dim=0))
    deviation = (variance + 1e-8).sqrt().mean()
    return deviation.expand(len(x), 1, *x.shape[-2:])


class EqualLinear(nn.Module):
    """A linear layer with equalised learning rate."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self._rate, self._scale = rate, rate / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        return F.linear(x, self.weight * self._scale, self.bias * self._rate)


class EqualConvolution(nn.Module):
    """A 3x3 convolution with equalised learning rate and He gain."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._scale = math.sqrt(2 / (inputs * 9))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return F.conv2d(x, self.weight * self._scale, self.bias, padding=1)


class StyledConvolution(nn.Module):
    """A convolution whose input the style scales and shifts and whose output takes noise."""

    def __init__(self, inputs: int, outputs: int, style: int, *, noisy: bool = True) -> None:
        super().__init__()
        self.convolution = EqualConvolution(inputs, outputs)
        self.scale = EqualLinear(style, inputs, bias=1.0)
        self.shift = EqualLinear(style, inputs)
        self.noise_scale = nn.Parameter(torch.zeros(1, outputs, 1, 1)) if noisy else None

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W), (B, style) and (B, 1, H, W) to (B, outputs, H, W)."""
        scale, shift = (layer(style)[:, :, None, None].to(x.dtype) for layer in (self.scale, self.shift))
        x = self.convolution(torch.addcmul(shift, x, scale))
        if self.noise_scale is not None and noise is not None:
            x = torch.addcmul(x, self.noise_scale.to(x.dtype), noise.to(x.dtype))
        return x


def _named_row(kind: str, name: str, length: int) -> Tensor:
    """(1, length) standard normal numbers that follow from a domain's name."""
    return torch.randn(1, length, generator=torch.Generator().manual_seed(derive_seed(0, kind, name)))
