"""A domain's own share of the segmenter: normalisation and first layers, beside a trunk that all domains share.

What a scanner does to an image lies in a network's first layers more than in its last (Shirokikh et al., "First U-Net
layers contain more domain specific information than the last ones", DART 2020); normalisation for each domain is that
of Chang et al. (CVPR 2019, domain-specific batch normalisation). Since the trunk never changes after the source, a
domain's network stays as it was to the bit, whatever is learnt after it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

STEM = ("conv_0.", "down_1.")  # the layers before the second halving


def adapter_names(segmenter: BasicUNet) -> list[str]:
    """Names, in its state, of what a domain keeps of a segmenter: first layers, and all normalisation."""
    norms = [name for name, module in segmenter.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return [
        name
        for name in segmenter.state_dict()
        if not name.endswith("num_batches_tracked") and (name.startswith(STEM) or name.rpartition(".")[0] in norms)
    ]


def adapter_state_dict(segmenter: BasicUNet) -> dict[str, Tensor]:
    """A copy of a domain's own share: weights as float16, running statistics as float32, on the CPU."""
    state = segmenter.state_dict()
    return {
        name: state[name].detach().cpu().to(torch.float32 if "running" in name else torch.float16, copy=True)
        for name in adapter_names(segmenter)
    }


def apply_adapter(segmenter: BasicUNet, own: Mapping[str, Tensor]) -> BasicUNet:
    """A copy of ``segmenter`` with a domain's own share in place of the common one."""
    network = copy.deepcopy(segmenter)
    network.load_state_dict({**network.state_dict(), **own})
    return network


def mark_only_adapter_trainable(segmenter: BasicUNet) -> BasicUNet:
    """Let a domain's own share learn and nothing else; in place."""
    own = set(adapter_names(segmenter))
    for name, parameter in segmenter.named_parameters():
        parameter.requires_grad_(name in own)
    return segmenter
