"""What every form of export starts from."""

from __future__ import annotations

from dataclasses import dataclass

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
