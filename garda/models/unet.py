"""The segmentation network."""

from __future__ import annotations

from typing import Annotated

from monai.networks.layers.factories import Norm
from monai.networks.nets import BasicUNet
from monai.networks.nets.basic_unet import UpCat
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.config import Config
from garda.data.task import Task
from garda.training.device import M
from garda.training.sharding import BatchNorm1d, BatchNorm2d

Width = Annotated[int, Field(gt=0, le=2048)]  # a package from elsewhere may ask for any


@Norm.factory_function("shared_batch")
def _shared_batch(dimensions: int) -> type[nn.Module]:
    """MONAI's name for batch normalisation that several processes share."""
    return (BatchNorm1d, BatchNorm2d)[dimensions - 1]


class SegmenterSettings(Config):
    """Architecture: a U-Net (Ronneberger et al. 2015) with batch normalisation, MONAI's BasicUNet.

    Attributes:
        widths: channels of the five resolutions, then of the last layer before the classes.
    """

    widths: tuple[Width, Width, Width, Width, Width, Width] = (16, 32, 64, 128, 128, 16)


class MatmulUpsample(nn.ConvTranspose2d):
    """A transposed convolution of 2x2 pixels with stride 2 as the product of matrices that it is: a pixel becomes four.

    On a CPU torch's own takes two to three times as long (docs/research/performance.md); weights are the same.

    >>> import torch
    >>> MatmulUpsample.like(nn.ConvTranspose2d(3, 5, kernel_size=2, stride=2))(torch.rand(1, 3, 4, 6)).shape
    torch.Size([1, 5, 8, 12])
    """

    @classmethod
    def like(cls, other: nn.ConvTranspose2d) -> MatmulUpsample:
        """With the weights of ``other``."""
        made = nn.utils.skip_init(cls, other.in_channels, other.out_channels, kernel_size=2, stride=2)
        made.weight, made.bias = other.weight, other.bias
        return made

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, 2 H, 2 W), channels-last."""
        count, inputs, height, width = x.shape
        weight = self.weight.permute(2, 3, 1, 0).reshape(-1, inputs, 1, 1)
        bias = None if self.bias is None else self.bias.repeat(4)
        four = F.conv2d(x, weight, bias).permute(0, 2, 3, 1).reshape(count, height, width, 2, 2, self.out_channels)
        return four.transpose(2, 3).reshape(count, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)


def with_conv_transpose(network: M) -> M:
    """``network`` itself, whose :class:`MatmulUpsample` is computed by torch's own operation from now on."""
    for part in network.modules():
        if isinstance(part, MatmulUpsample):
            part.__class__ = nn.ConvTranspose2d  # type: ignore[assignment]
    return network


def build_segmenter(task: Task, settings: SegmenterSettings) -> BasicUNet:
    """A network from (B, ``task.channels``, H, W) in [0, 1] to (B, K, H, W) logits; H and W multiples of 16.

    >>> import torch
    >>> task = Task(name="t", classes=("background", "organ"), size=(16, 16))
    >>> segmenter = build_segmenter(task, SegmenterSettings(widths=(4, 4, 8, 8, 8, 4))).eval()
    >>> segmenter(torch.rand(3, 1, 16, 32)).shape
    torch.Size([3, 2, 16, 32])
    """
    relu = ("relu", {"inplace": True})
    network = BasicUNet(2, task.channels, len(task.classes), settings.widths, act=relu, norm="shared_batch")
    for part in network.modules():
        if isinstance(part, UpCat):
            part.is_pad = False  # sides fit, and padding by nothing copies, in float32 and the cat after it too
            part.upsample.deconv = MatmulUpsample.like(part.upsample.deconv)
    return network
