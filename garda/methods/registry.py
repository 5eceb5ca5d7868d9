"""The methods by name."""

from garda.data.task import Task
from garda.methods.adabn import AdaBN
from garda.methods.advent import Advent
from garda.methods.base import Method, SharedSettings
from garda.methods.cotta import CoTTA
from garda.methods.fda_replay import FDAReplay
from garda.methods.garda import Garda
from garda.methods.garda_paper import GardaPaper
from garda.methods.histogram import Histogram
from garda.methods.oracles import Joint, Supervised
from garda.methods.source_only import Randomised, SourceOnly
from garda.methods.tent import Tent
from garda.training.device import Compute

METHODS: dict[str, type[Method]] = {
    "adabn": AdaBN,
    "advent": Advent,
    "cotta": CoTTA,
    "fda_replay": FDAReplay,
    "garda": Garda,
    "garda_paper": GardaPaper,
    "histogram": Histogram,
    "joint": Joint,
    "randomised": Randomised,
    "source_only": SourceOnly,
    "supervised": Supervised,
    "tent": Tent,
}


def build_method(name: str, settings: SharedSettings, task: Task) -> Method:
    """A method on its device.

    Args:
        name: a key of :data:`METHODS`.
        settings: with a block for every method as an attribute of its name (:mod:`garda.handover.settings`).
        task: what is segmented.

    Raises:
        ConfigError: the device is not there.
    """
    return METHODS[name](task, settings, getattr(settings, name), Compute(settings.compute))
