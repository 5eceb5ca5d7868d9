"""A domain's adapter of the segmenter: normalisation and first layers, beside a backbone that all domains use.

What a scanner does to an image shows in a network's first layers more than in its last (Shirokikh et al., "First U-Net
layers contain more domain specific information than the last ones", DART 2020); normalisation for each domain is that
of Chang et al. (CVPR 2019, domain-specific batch normalisation). Since the backbone never changes after the source, a
domain's network stays as it was to the bit, whatever is learnt after it.
"""

import copy
from collections.abc import Mapping

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

STEM = ("conv_0.", "down_1.")  # the layers before the second halving


def adapter_names(segmenter: BasicUNet) -> list[str]:
    """Names, in its state, of the adapter of a segmenter: its first layers, and all normalisation."""
    norms = [f"{name}." for name, module in segmenter.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [name for name in segmenter.state_dict() if name.startswith((*STEM, *norms))]
    return [name for name in kept if not name.endswith("num_batches_tracked")]


def adapter_state_dict(segmenter: BasicUNet) -> dict[str, Tensor]:
    """A copy of the adapter of a segmenter: weights as float16, running statistics as float32, on the CPU.

    Returns:
        By the segmenter's own names: (C,) statistics, scales and shifts, (C, C', 3, 3) kernels.
    """
    state = segmenter.state_dict()
    kinds = {name: torch.float32 if "running" in name else torch.float16 for name in adapter_names(segmenter)}
    return {name: state[name].detach().cpu().to(kind, copy=True) for name, kind in kinds.items()}


def apply_adapter(segmenter: BasicUNet, own: Mapping[str, Tensor]) -> BasicUNet:
    """A copy of ``segmenter`` with a domain's own adapter in place of its own; ``segmenter`` is left as it is.

    Args:
        segmenter: gives the backbone.
        own: what :func:`adapter_state_dict` gave.

    Raises:
        RuntimeError: the adapter is that of another architecture.

    >>> from garda.data.task import Task
    >>> from garda.models import unet
    >>> task = Task(name="t", classes=("background", "organ"), size=(16, 16))
    >>> first, second = (unet.build_segmenter(task, unet.SegmenterSettings(widths=(4,) * 6)) for _ in range(2))
    >>> adapted = apply_adapter(first, adapter_state_dict(second))
    >>> torch.equal(adapted.conv_0.conv_0.conv.weight, second.conv_0.conv_0.conv.weight.half().float())
    True
    >>> torch.equal(adapted.final_conv.weight, first.final_conv.weight)
    True
    """
    network = copy.deepcopy(segmenter)
    network.load_state_dict({**network.state_dict(), **own})
    return network


def mark_only_adapter_trainable(segmenter: BasicUNet) -> BasicUNet:
    """Let the adapter learn and nothing else, in place; returns ``segmenter``."""
    own = adapter_names(segmenter)
    for name, parameter in segmenter.named_parameters():
        parameter.requires_grad_(name in own)
    return segmenter
