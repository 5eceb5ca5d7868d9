"""What a package lets one do: its method on this machine's device, and its knowledge."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from garda.core import config
from garda.core.config import SettingsOrigin
from garda.core.errors import ConfigError, PackageError
from garda.data.task import Groups, Task
from garda.handover import format
from garda.handover.format import SETUP
from garda.handover.ledger import LedgerEntry
from garda.handover.settings import Settings, deciding_settings, parse_settings
from garda.handover.setup import Setup, differing_key, in_todays_words
from garda.methods import registry
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.methods.registry import METHODS

HERE = {"compute": {"accelerator": "auto"}}  # the machine need not be the one that learnt


@dataclass(frozen=True)
class LoadedPackage:
    """A package, ready for use.

    Attributes:
        setup: what decides the learning, in the words of this version.
        settings: the same, with what this machine adds.
        parsed: the settings, checked.
        method: on this machine's device.
        knowledge: what has been learnt.
    """

    setup: Setup
    settings: dict[str, Any]
    parsed: Settings
    method: Method
    knowledge: Knowledge


def load_package(folder: Path, changes: Mapping[str, Any] | None = None) -> LoadedPackage:
    """Read a package's knowledge; no code of its files is executed.

    Args:
        folder: the package.
        changes: settings of this machine, such as where a weights file lies; none that decides a result.

    Raises:
        PackageError: it is damaged, or of a method that this version does not know.
        ConfigError: its settings are not what this version understands, or a change decides a result.
        CheckpointError: weights are missing, damaged, or belong to other settings.
    """
    try:
        setup = in_todays_words(format.read_setup(folder))
    except ValueError as error:
        raise PackageError(folder / SETUP, str(error), "use the version of garda that wrote it") from None
    if setup.method not in METHODS:
        raise PackageError(folder / SETUP, f"is of an unknown method {setup.method!r}", "use a newer version of garda")
    values = config.merge(setup.settings, HERE)
    changed = config.merge(values, dict(changes or {}))
    before = parse_settings(setup.method, values, folder / SETUP)
    settings = parse_settings(setup.method, changed, SettingsOrigin(folder / SETUP, (("--set", changes or {}),)))
    decided, now = (config.merge(deciding_settings(setup.method, each), HERE) for each in (before, settings))
    if key := differing_key(decided, now):
        raise ConfigError("--set", f"{key} is what the package decides", "leave it out, or start from another source")
    method = registry.build_method(setup.method, settings, format.read_task(setup, folder))
    return LoadedPackage(setup, changed, settings, method, method.load(folder))


@dataclass(frozen=True)
class Exported:
    """One domain's network, and what is to be known of it.

    Attributes:
        network: in evaluation mode, float32, on the CPU; (B, C, H, W) in [0, 1] on the network's grid to (B, K, H, W)
            logits, H and W multiples of 16.
        widths: see :class:`garda.models.unet.SegmenterSettings`.
        task: what is segmented, and how a scan comes to the network's grid.
        name: the pipeline's name.
        domain: whose images the network reads; ``other`` for a domain that has not been met.
        entries: the ledger's.
        digest: of the package.
        card: the package's, as Markdown.
        notice: the package's, as Markdown.
        generator: safetensors, where it was asked for.
        zoom: factor by which slices are enlarged before the network reads them.
        largest: of which classes the largest piece alone is kept.
    """

    network: nn.Module
    widths: tuple[int, ...]
    task: Task
    name: str
    domain: str
    entries: tuple[LedgerEntry, ...]
    digest: str
    card: str
    notice: str
    generator: bytes | None = None
    zoom: float = 1.0
    largest: Groups = ()


def on_cpu(network: nn.Module) -> nn.Module:
    """A float32 copy in evaluation mode, with its memory in the plain order."""
    plain = {"dtype": torch.float32, "memory_format": torch.contiguous_format}
    copied = copy.deepcopy(network).to(device="cpu", **plain)  # type: ignore[call-overload]
    return copied.eval().requires_grad_(False)


OTHER = "other"  # a domain that has not been met


def choose_domain(knowledge: Knowledge, domain: str | None) -> str:
    """The domain whose network reads: the one asked for, ``other`` among them, or the last one met.

    Raises:
        ConfigError: no such domain has been met.
    """
    if domain not in (None, OTHER, *knowledge.domains):
        known = ", ".join([*knowledge.domains, OTHER])
        raise ConfigError("--domain", f"{domain!r} has not been met", f"use one of {known}")
    return domain or knowledge.domains[-1]
