"""What a batch that several processes share owes to all of it: rows, means, gradients, batch normalisation.

The whole batch defines the mathematics, not the number of devices. Every process draws the same random numbers for all
slices of a batch and computes with its own part of them; what a network or a loss takes from a whole batch is averaged
over the processes, and so are gradients.

Gradients are averaged after ``backward`` and not by a wrapper around the networks: a step of a generator asks a
discriminator three times, once for a gradient of a gradient, which hooks on the backward pass do not allow for.

Outside of :func:`garda.training.distributed.together`, and in a run of one device, everything here leaves what it is
given as it is.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, distributed, nn

from garda.core.errors import ConfigError, raise_all
from garda.training.distributed import world_size


def shard(*counts: int) -> slice | Tensor:
    """Which rows of a batch are this process's: an index for the first dimension.

    Args:
        counts: the batch consists of so many rows of one kind after so many of another; each kind is shared equally.

    Raises:
        ValueError: rows that cannot be shared equally; :func:`check_batches` tells before anything is learnt.
    """
    processes = world_size()
    if processes == 1:
        return slice(None)
    if any(rows % processes for rows in counts):
        raise ValueError(f"{counts} rows cannot be shared by {processes} processes")
    shares, start, found = [rows // processes for rows in counts], 0, []
    for rows, share in zip(counts, shares, strict=True):
        found.append(torch.arange(share) + start + distributed.get_rank() * share)
        start += rows
    return slice(int(found[0][0]), int(found[0][-1]) + 1) if len(found) == 1 else torch.cat(found)


def check_batches(settings: BaseModel, blocks: Iterable[str], processes: int) -> None:
    """Refuse batches that the processes cannot share equally.

    Args:
        settings: of a run; every ``batch`` in it counts, and half of it where an objective has two kinds of images.
        blocks: the parts of the settings that the run reads.
        processes: their number.

    Raises:
        ConfigError: one batch; several are :class:`~garda.core.errors.Problems`.
    """
    raise_all([error for name in blocks for error in _find_unequal(getattr(settings, name), processes, name)])


def _find_unequal(value: Any, processes: int, key: str) -> Iterator[ConfigError]:
    for name in type(value).model_fields if isinstance(value, BaseModel) else ():
        yield from _find_unequal(getattr(value, name), processes, f"{key}.{name}")
    if not hasattr(value, "batch"):
        return
    kinds = {value.batch - value.real_images, value.real_images} if hasattr(value, "real_images") else {value.batch}
    if any(rows % processes for rows in kinds):
        what = f"{' and '.join(map(str, sorted(kinds)))} slices cannot be shared equally by {processes} devices"
        yield ConfigError(f"{key}.batch", what, "change the batch or the number of devices")


class _Sum(torch.autograd.Function):
    """The sum over all processes, as often differentiable as one likes."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        """Added up in a copy."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """What all processes make of the sum reaches each one's share."""
        found: Tensor = _Sum.apply(gradients[0])
        return found


def mean(tensor: Tensor) -> Tensor:
    """A tensor's mean over the processes, elementwise; differentiable, twice too."""
    if world_size() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)
    return total / world_size()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes its mean over the processes, in place."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, found in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(found.view(gradient.shape) / world_size())


def _normalise(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """Batch normalisation in training, its mean and variance those of the whole batch (Ioffe and Szegedy 2015)."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    wide = x.float()
    average = mean(wide.mean(dim=dims))
    centred = wide - average.view(shape)
    variance = mean(centred.square().mean(dim=dims))
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
        rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        rows = x.numel() // x.shape[1] * world_size()
        norm.running_mean.lerp_(average.detach().to(norm.running_mean.dtype), rate)
        norm.running_var.lerp_((variance.detach() * (rows / (rows - 1))).to(norm.running_var.dtype), rate)
    found = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        found = found * norm.weight.view(shape) + norm.bias.view(shape)
    return found.to(x.dtype)


class BatchNorm1d(nn.BatchNorm1d):
    """torch's, by the whole batch when several processes learn; torch's own synchronised one needs a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C) to the same."""
        return _normalise(self, input) if self.training and world_size() > 1 else super().forward(input)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, by the whole batch when several processes learn; torch's own synchronised one needs a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return _normalise(self, input) if self.training and world_size() > 1 else super().forward(input)
