"""The methods: how knowledge is made from a source and adapted to one target after another."""

from __future__ import annotations

from garda.compute import Compute
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
    "Replaying",
    "SharedSettings",
    "build_method",
]


def build_method(name: str, settings: SharedSettings, task: Task) -> Method:
    """A method on its device.

    Args:
        name: a key of :data:`METHODS`.
        settings: with a block for every method as an attribute of its name, see :class:`garda.settings.Settings`.
        task: what is segmented.

    Raises:
        ConfigError: the device is not there.
    """
    return METHODS[name](task, settings, getattr(settings, name), Compute(settings.compute))
