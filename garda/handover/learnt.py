"""What a package lets one do: its method on this machine's device, and its knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from garda.config import SettingsOrigin, merge
from garda.errors import ConfigError, PackageError
from garda.handover.package import SETUP, read_setup, read_task
from garda.methods import METHODS, Knowledge, Method, build_method
from garda.plan import Setup, differing_key
from garda.settings import Settings, deciding_settings, parse_settings

HERE = {"compute": {"accelerator": "auto"}}  # the machine need not be the one that learnt


@dataclass(frozen=True)
class Learnt:
    """A package, ready for use.

    Attributes:
        setup: what decides the learning.
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


def load_package(folder: Path, changes: Mapping[str, Any] | None = None) -> Learnt:
    """Read a package's knowledge; no code of its files is executed.

    Args:
        folder: the package.
        changes: settings of this machine, such as where a weights file lies; none that decides a result.

    Raises:
        PackageError: it is damaged, or of a method that this version does not know.
        ConfigError: its settings are not what this version understands, or a change decides a result.
        CheckpointError: weights are missing, damaged, or belong to other settings.
    """
    setup = read_setup(folder)
    if setup.method not in METHODS:
        raise PackageError(folder / SETUP, f"is of an unknown method {setup.method!r}", "use a newer version of garda")
    values = merge(setup.settings, HERE)
    changed = merge(values, dict(changes or {}))
    before = parse_settings(setup.method, values, folder / SETUP)
    settings = parse_settings(setup.method, changed, SettingsOrigin(folder / SETUP, (("--set", changes or {}),)))
    decided, now = (merge(deciding_settings(setup.method, each), HERE) for each in (before, settings))
    if key := differing_key(decided, now):
        raise ConfigError("--set", f"{key} is what the package decides", "leave it out, or start from another source")
    method = build_method(setup.method, settings, read_task(setup, folder))
    return Learnt(setup, changed, settings, method, method.load(folder))
