"""Features of frozen networks: the encoders, the renormalisation of features, and the distance of images by them."""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.config import Config
from garda.core.errors import CheckpointError
from garda.training import sharding
from garda.training.device import Compute


class FeatureSettings(Config):
    """Which frozen encoder.

    Attributes:
        encoder: ``segmenter`` takes the source segmenter's own encoder and needs no other weights; ``vgg19`` takes
            VGG19 up to relu4_1 (Simonyan and Zisserman 2015) from a local file.
        depth: for ``segmenter``, the number of halvings (0 to 4).
        weights: for ``vgg19``, a file with the state dict in torchvision's naming ("features.0.weight", ...).
        sha256: for ``vgg19``, the file's SHA-256.
    """

    encoder: Literal["segmenter", "vgg19"] = "segmenter"
    depth: int = Field(default=2, ge=0, le=4)
    weights: str | None = Field(default=None, exclude=True)
    sha256: str | None = None

    @property
    def halvings(self) -> int:
        """How often the encoder halves the image's sides."""
        return self.depth if self.encoder == "segmenter" else len(VGG19Encoder.WIDTHS) - 1


class SegmenterEncoder(nn.Module):
    """The first layers of a trained U-Net: (B, C, H, W) in [0, 1] to (B, width, H / 2^depth, W / 2^depth)."""

    def __init__(self, segmenter: BasicUNet, depth: int) -> None:
        super().__init__()
        downs = [segmenter.down_1, segmenter.down_2, segmenter.down_3, segmenter.down_4]
        self.layers = nn.Sequential(segmenter.conv_0, *downs[:depth])

    def forward(self, image: Tensor) -> Tensor:
        """Features after the last of the layers."""
        return self.layers(image)


class VGG19Encoder(nn.Module):
    """VGG19 up to relu4_1 (Simonyan and Zisserman 2015, table 1, column E).

    (B, 1 or 3, H, W) in [0, 1] to (B, 512, H / 8, W / 8); one channel stands for all three colours.
    """

    WIDTHS = ((64, 64), (128, 128), (256, 256, 256, 256), (512,))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for widths in self.WIDTHS:
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self.mean: Tensor = nn.Buffer(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.std: Tensor = nn.Buffer(torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Features after relu4_1."""
        return self.features((image.expand(-1, 3, -1, -1) - self.mean) / self.std)


def load_vgg19(weights: Path, sha256: str) -> VGG19Encoder:
    """VGG19 with the weights of a local file.

    Raises:
        CheckpointError: the file is missing, is another file, or lacks a layer.
    """
    remedy = "give the file's path under features.weights and its digest under features.sha256"
    if not weights.is_file():
        raise CheckpointError(weights, "no such weights file", remedy)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256.lower():
        raise CheckpointError(weights, f"has the SHA-256 {digest}, not {sha256}", remedy)
    encoder = VGG19Encoder()
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        encoder.features.load_state_dict({name: state[f"features.{name}"] for name in encoder.features.state_dict()})
    except Exception:  # torch raises many kinds for a file that holds something else
        raise CheckpointError(weights, "does not hold VGG19's weights", remedy) from None
    return encoder


def build_encoder(settings: FeatureSettings, source_segmenter: BasicUNet) -> nn.Module:
    """The frozen encoder, in evaluation mode.

    Raises:
        CheckpointError: VGG19's weights are asked for and cannot be had.
    """
    if settings.encoder == "segmenter":
        encoder: nn.Module = SegmenterEncoder(source_segmenter, settings.depth)
    elif settings.weights is None or settings.sha256 is None:
        what, remedy = "vgg19 needs a weights file and its SHA-256", "set features.weights and features.sha256"
        raise CheckpointError("features", what, remedy)
    else:
        encoder = load_vgg19(Path(settings.weights).expanduser(), settings.sha256)
    return encoder.eval().requires_grad_(False)


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Content features with the style's mean and standard deviation (Huang and Belongie 2017, equation 8), in float32.

    Args:
        content: (B, C, h, w).
        style: (B, C, h', w').

    Returns:
        (B, C, h, w); each channel of each element has the style's mean and standard deviation.

    >>> content, style = torch.rand(2, 3, 8, 8), 5 + 2 * torch.rand(2, 3, 4, 4)
    >>> torch.allclose(adain(content, style).mean(dim=(2, 3)), style.mean(dim=(2, 3)), atol=1e-3)
    True
    """
    mean, deviation = _moments(content.float())
    style_mean, style_deviation = _moments(style.float())
    return (content.float() - mean) / deviation * style_deviation + style_mean  # equation 8


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel (Huang and Belongie 2017, equations 5 and 6)."""
    variance = features.var(dim=(2, 3), keepdim=True, unbiased=False)
    return features.mean(dim=(2, 3), keepdim=True), (variance + 1e-6).sqrt()


class ReconstructionLossSettings(Config):
    """How two images are compared.

    Attributes:
        edges: weight of the difference of gradients.
        features: weight of the difference of the source segmenter's features.
    """

    edges: NonNegativeFloat = 2.0
    features: NonNegativeFloat = 0.1


class ReconstructionLoss:
    """The distance of two images: intensities, edges, and what the source segmenter sees in them.

    Intensities alone leave small bright things on black unlearnt; features give edges back that the mean blurs.

    >>> from garda.data.task import Task
    >>> from garda.models import unet
    >>> from garda.training.device import ComputeSettings
    >>> task = Task(name="t", classes=("background", "organ"), size=(16, 16))
    >>> segmenter = unet.build_segmenter(task, unet.SegmenterSettings(widths=(4,) * 6)).eval().requires_grad_(False)
    >>> distance = ReconstructionLoss(segmenter, ReconstructionLossSettings(), Compute(ComputeSettings()))
    >>> image = torch.rand(2, 1, 16, 16)
    >>> float(distance(image, image))
    0.0
    """

    def __init__(self, segmenter: BasicUNet, settings: ReconstructionLossSettings, compute: Compute) -> None:
        self._layers = [segmenter.conv_0, segmenter.down_1, segmenter.down_2]
        self._settings, self._compute = settings, compute

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """A scalar >= 0 from (B, C, H, W) images in [0, 1] each; the gradient reaches ``ours`` alone."""
        distance = 10 * F.mse_loss(ours, theirs) + F.l1_loss(ours, theirs)
        for dim in (2, 3):
            distance = distance + self._settings.edges * F.l1_loss(ours.diff(dim=dim), theirs.diff(dim=dim))
        with self._compute.autocast():
            with torch.no_grad():
                seen = self._features(theirs)
            found = self._features(ours)
        parts = [
            F.l1_loss(a.float(), b.float()) / (sharding.mean(b.float().abs().mean()) + 1e-3)
            for a, b in zip(found, seen, strict=True)
        ]
        return distance + self._settings.features * torch.stack(parts).sum()

    def _features(self, image: Tensor) -> list[Tensor]:
        features = [self._compute.to_device(image)]
        for layer in self._layers:
            features.append(layer(features[-1]))
        return features[1:]
