"""The methods: how knowledge is made from a source and adapted to one target after another."""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from garda.compute import Compute
from garda.config import parse
from garda.errors import ConfigError
from garda.knowledge import Knowledge
from garda.methods.adversarial import Adversarial
from garda.methods.base import Bound, Method, Replaying, SharedSettings
from garda.methods.batchnorm import BatchNorm
from garda.methods.entropy import Entropy
from garda.methods.garda import Garda
from garda.methods.garda_paper import GardaPaper
from garda.methods.histogram import Histogram
from garda.methods.joint import Joint
from garda.methods.self_training import SelfTraining
from garda.methods.source_only import Randomised, SourceOnly
from garda.methods.style_bank import StyleBank
from garda.methods.supervised import Supervised
from garda.task import Task

METHODS: dict[str, type[Method]] = {
    "adversarial": Adversarial,
    "batchnorm": BatchNorm,
    "entropy": Entropy,
    "garda": Garda,
    "garda_paper": GardaPaper,
    "histogram": Histogram,
    "joint": Joint,
    "randomised": Randomised,
    "self_training": SelfTraining,
    "source_only": SourceOnly,
    "style_bank": StyleBank,
    "supervised": Supervised,
}

__all__ = [
    "METHODS",
    "Bound",
    "Knowledge",
    "Method",
    "SharedSettings",
    "build_method",
    "deciding_settings",
    "parse_settings",
]


def parse_settings(method: str, values: dict[str, Any], where: object) -> SharedSettings:
    """Check settings and fill in the defaults.

    Args:
        method: the chosen method.
        values: the shared settings, and a block for any method under its name.
        where: the file they come from.

    Returns:
        The shared settings, with a block for every method as an attribute of its name.

    Raises:
        ConfigError: an unknown method or key, or a value that does not fit.
        Problems: several of them.
    """
    if method not in METHODS:
        raise ConfigError(where, f"unknown method {method!r}", f"use one of {', '.join(sorted(METHODS))}")
    blocks: Any = {name: (known.Settings, known.Settings()) for name, known in METHODS.items()}
    return parse(create_model("Settings", __base__=SharedSettings, **blocks), values, where)


def deciding_settings(method: str, settings: SharedSettings) -> dict[str, Any]:
    """What decides a method's result, as plain values: the shared settings and the method's own block.

    Other methods' blocks are left out, and so is where a weights file lies; its digest decides.
    """
    known = METHODS[method]
    replays = issubclass(known, Replaying) and known.shares_generator
    shared = {*SharedSettings.model_fields} - (set() if replays else {"generator"})
    return settings.model_dump(mode="json", include={*shared, method})


def build_method(name: str, settings: SharedSettings, task: Task) -> Method:
    """A method on its device.

    Args:
        name: a key of :data:`METHODS`.
        settings: what :func:`parse_settings` returned.
        task: what is segmented.

    Raises:
        ConfigError: the device is not there.
    """
    return METHODS[name](task, settings, getattr(settings, name), Compute(settings.compute))
