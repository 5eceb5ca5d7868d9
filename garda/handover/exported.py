"""What every form of export starts from."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from monai.networks.nets import BasicUNet

from garda.handover.ledger import Entry
from garda.task import Task


@dataclass(frozen=True)
class Exported:
    """One domain's network, and what is to be known of it.

    Attributes:
        network: in evaluation mode, float32, on the CPU; (B, C, H, W) in [0, 1] on the network's grid to (B, K, H, W)
            logits, H and W multiples of 16.
        widths: see :class:`garda.segmenter.SegmenterSettings`.
        task: what is segmented, and how a scan comes to the network's grid.
        name: the pipeline's name.
        domain: whose images the network reads; ``other`` for a domain that has not been met.
        entries: the ledger's.
        digest: of the package.
        card: the package's, as Markdown.
        notice: the package's, as Markdown.
        generator: safetensors, where it was asked for.
    """

    network: BasicUNet
    widths: tuple[int, ...]
    task: Task
    name: str
    domain: str
    entries: tuple[Entry, ...]
    digest: str
    card: str
    notice: str
    generator: bytes | None = None


def on_cpu(network: BasicUNet) -> BasicUNet:
    """A float32 copy in evaluation mode, with its memory in the plain order."""
    copied = copy.deepcopy(network).to(device="cpu", dtype=torch.float32, memory_format=torch.contiguous_format)
    return copied.eval().requires_grad_(False)
