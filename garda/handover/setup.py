"""What decides a run: ``setup.json`` of a package, ``plan.json`` of a run folder."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from garda.core import config, files
from garda.core.config import Config, Printable
from garda.core.errors import RunFolderError

FORMAT = 3  # of packages; those of older formats are read, and stay what they are from hop to hop
RENAMED_METHODS = {
    "adversarial": "advent",
    "batchnorm": "adabn",
    "entropy": "tent",
    "self_training": "cotta",
    "style_bank": "fda_replay",
}
RENAMED_SETTINGS = {  # the inner keys first
    **RENAMED_METHODS,
    "generator.factorised.generator": "generator.network",
    "generator.factorised.pairs.reconstruction": "generator.reconstruction.loss",
    "generator.factorised.pairs": "generator.reconstruction",
    "generator.factorised.prior": "generator.prior",
    "generator.factorised.look.reconstruction": "generator.style.loss",
    "generator.factorised.look.survey": "generator.style.estimate",
    "generator.factorised.look": "generator.style",
    "garda_paper.generator": "garda_paper.network",
    "garda_paper.images.motion": "garda_paper.images.geometry",
    "gate.look": "gate.style",
}
GONE_SETTINGS = {
    "generator.family": "every method but garda_paper replays with the one generator",
    "garda.source": "the source is read by the network that reads it best",
    "garda.target": "a target is read by the networks that read it best",
    "garda.trial": "readings are chosen by garda.choice",
}


class PlannedDomain(Config):
    """A domain's name and the SHA-256 of its manifest file, 64 hex digits."""

    name: str
    manifest: str


class Setup(Config):
    """What decides every stage of a sequence, at whichever site, as plain values; no path, no patient.

    Attributes:
        format: of the package that holds it.
        garda: version that learnt the source.
        name: the sequence's name.
        method: the method's name.
        seed: seed of everything random.
        task: see :class:`garda.data.task.Task`.
        settings: see :func:`garda.handover.settings.deciding_settings`.
    """

    format: int = FORMAT
    garda: str
    name: Printable
    method: str
    seed: int
    task: dict[str, Any]
    settings: dict[str, Any]


class Plan(Setup):
    """Everything that decides a run's result: the contents of ``plan.json``.

    Attributes:
        pseudonyms: a check value of the key behind the pseudonyms in ``scores.csv``, so that no run mixes two.
        domains: source and targets, in order; the manifest of one that another site has learnt is empty.
        package: digest of the package that the run goes on from; empty where it begins with the source.
        forced: whether what the gate refuses is kept.
    """

    pseudonyms: str
    domains: tuple[PlannedDomain, ...]
    package: str = ""
    forced: bool = False

    @property
    def setup(self) -> Setup:
        """What also decides the stages of other sites."""
        return Setup.model_validate(self.model_dump(include={*Setup.model_fields}))


def find_old_words(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Keys that settings of an older version have: each with what is wrong with it, and the remedy.

    >>> find_old_words({"gate": {"look": [1, 1]}})
    [('gate.look', "'gate.look' is called 'gate.style' now", 'rename it')]
    """
    left = copy.deepcopy(dict(settings))
    known = [(old, f"is called {new!r} now", "rename it") for old, new in RENAMED_SETTINGS.items()]
    known += [(old, f"is no setting any more: {why}", "leave it out") for old, why in GONE_SETTINGS.items()]
    return [(old, f"{old!r} {what}", remedy) for old, what, remedy in known if _pop(left, old) is not None]


def in_todays_words(setup: Setup) -> Setup:
    """A setup of any format with the names that methods and settings have now; the one given stays as it is.

    Raises:
        ValueError: format 1 let replaying methods choose a generator that none of them has now.

    >>> settings = {"self_training": {"steps": 4}, "gate": {"look": [1.0, 1.0]}}
    >>> old = Setup(format=1, garda="0.1.0", name="a", method="self_training", seed=0, task={}, settings=settings)
    >>> new = in_todays_words(old)
    >>> new.method, new.settings
    ('cotta', {'gate': {'style': [1.0, 1.0]}, 'cotta': {'steps': 4}})
    """
    if setup.format == FORMAT:
        return setup
    settings = copy.deepcopy(setup.settings)
    if _pop(settings, "generator.family") not in (None, "factorised"):
        raise ValueError("its method replays with a generator that this version has for garda_paper alone")
    if setup.format == 1:
        _pop(settings, "generator.style")
    for gone in GONE_SETTINGS:
        _pop(settings, gone)
    randomisation = (settings.get("source") or {}).get("randomisation")
    if randomisation is not None:
        randomisation.setdefault("regions", 0.0)
    for old, new in RENAMED_SETTINGS.items() if setup.format == 1 else ():
        if (value := _pop(settings, old)) is not None:
            for part in reversed(new.split(".")):
                value = {part: value}
            settings = config.merge(settings, value)
    _pop(settings, "generator.factorised")
    method = RENAMED_METHODS.get(setup.method, setup.method)
    return setup.model_copy(update={"format": FORMAT, "method": method, "settings": settings})


def _pop(settings: Any, key: str) -> Any:
    """Take the value at a dotted key out of nested settings; None where there is none."""
    *outer, last = key.split(".")
    for part in outer:
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings.pop(last, None) if isinstance(settings, dict) else None


def read_plan(run: Path) -> Plan:
    """The plan of an existing run folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    file = run / "plan.json"
    if not file.exists():
        raise RunFolderError(run, "is not a run folder", "give the --out folder of `garda run`")
    try:
        return Plan.model_validate(files.read_json(file))
    except ValueError:
        raise RunFolderError(file, "is damaged", "give a new --out folder, or restore the file") from None


def differing_key(old: Any, new: Any, key: str = "") -> str | None:
    """The first key, depth first, under which two trees of plain values differ; None if they are equal.

    Args:
        old: mappings, lists and what JSON has besides.
        new: likewise.
        key: where the two stand in a larger tree.

    >>> differing_key({"seed": 0, "domains": ["a", "b"]}, {"seed": 0, "domains": ["a", "c"]})
    'domains.1'
    >>> differing_key({"seed": 0}, {"seed": 0}) is None
    True
    """
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if not isinstance(old, dict) or not isinstance(new, dict):
        return None if old == new else key
    names = sorted({*old, *new})
    inner = (differing_key(old.get(name), new.get(name), f"{key}.{name}" if key else str(name)) for name in names)
    return next((found for found in inner if found is not None), None)
