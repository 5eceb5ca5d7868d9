"""The segmentation of a whole volume, and the estimation of normalisation statistics."""

import time
from collections.abc import Iterator

import torch
from monai.inferers import SlidingWindowInferer
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from garda.core.config import Config
from garda.data import components
from garda.data.dataset import Slices
from garda.data.task import Groups, Task
from garda.data.volume import Volume, grid_for
from garda.training.device import Compute
from garda.training.loop import Phase


def segment(
    segmenter: nn.Module, volume: Volume, task: Task, compute: Compute, largest: Groups = (), batch: int = 16
) -> Tensor:
    """Segment a whole volume on its own grid; what the crop left out is background.

    Args:
        segmenter: in evaluation mode, on ``compute``'s device.
        volume: any volume read for ``task``.
        task: gives the network's grid.
        compute: device and precision.
        largest: of which classes the largest piece alone is kept.
        batch: slices or windows computed at once.

    Returns:
        (D, H, W) int64 class indices on the CPU.

    >>> import numpy as np
    >>> from garda.data.volume import Frame
    >>> from garda.training.device import ComputeSettings
    >>> class Threshold(nn.Module):
    ...     def forward(self, image):
    ...         return torch.cat([0.5 - image, image - 0.5], dim=1)
    >>> task = Task(name="t", classes=("background", "bright"), size=(16, 16))
    >>> volume = Volume("case", torch.ones(2, 1, 16, 16), None, None, np.eye(4), None, Frame())
    >>> segment(Threshold(), volume, task, Compute(ComputeSettings())).shape
    torch.Size([2, 16, 16])
    """
    found = probabilities(segmenter, volume, task, compute, batch)
    return components.keep_largest(torch.cat([part.argmax(dim=1).cpu() for part in found]), largest)


def probabilities(
    segmenter: nn.Module, volume: Volume, task: Task, compute: Compute, batch: int = 16
) -> Iterator[Tensor]:
    """The probabilities that :func:`segment` decides by, with its arguments.

    Yields:
        (d, K, H, W) float32 in [0, 1] on ``compute``'s device, of the following d slices.
    """
    grid = grid_for(volume, task)
    image = grid.to_network(volume.image)
    one_window = tuple(image.shape[-2:]) == tuple(task.size)
    infer = SlidingWindowInferer(task.size, sw_batch_size=batch, overlap=0.25, mode="gaussian")

    def network(windows: Tensor) -> Tensor:
        with compute.autocast():
            return segmenter(compute.to_device(windows)).float()

    for part in image.split(batch):
        with torch.inference_mode():
            shown = compute.to_device(part)
            logits = network(shown) if one_window else infer(shown, network)
            found = grid.to_volume(torch.softmax(logits, dim=1))
        yield found


class StatisticsSettings(Config):
    """How normalisation statistics are estimated.

    Attributes:
        batches: number of batches that are averaged.
        batch: slices a batch.
    """

    batches: PositiveInt = 50
    batch: int = Field(default=16, ge=2)


def estimate_statistics(
    network: nn.Module, slices: Slices, settings: StatisticsSettings, phase: Phase, compute: Compute
) -> None:
    """Replace a network's running means and variances by their plain averages over batches of a domain, in place.

    This is adaptive batch normalisation (Li et al. 2018).

    It takes seconds: a stop in between keeps nothing, and the stage begins again.

    Args:
        network: on ``compute``'s device.
        slices: the domain's images.
        settings: how many.
        phase: seeds the batches, is told progress and seconds.
        compute: device and precision.

    Raises:
        Interrupted: a stop was asked for; the statistics are of no use then.
    """

    def images() -> Iterator[Tensor]:
        for step in range(settings.batches):
            phase.stopping.check(phase.name)
            yield compute.to_device(slices.batch(step, settings.batch, phase.seed).image)
            phase.progress(step + 1, settings.batches)

    started = time.monotonic()
    with compute.autocast():
        update_bn(images(), network)
    phase.spent(time.monotonic() - started)
