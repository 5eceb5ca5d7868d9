"""Everything that can be set for a run: what methods share, the gate, the audit, and a block for each method."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import create_model

from garda import __version__
from garda.core import config
from garda.core.config import SettingsOrigin
from garda.core.errors import ConfigError, raise_all
from garda.core.pseudonyms import Pseudonyms
from garda.data.sequence import DomainSequence
from garda.handover import setup
from garda.handover.setup import RENAMED_METHODS, Plan
from garda.methods.base import SharedSettings
from garda.methods.registry import METHODS
from garda.methods.replay_method import ReplayMethod
from garda.safety.audit_report import AuditSettings
from garda.safety.limits import GateSettings

MOST_STEPS = 100_000_000  # of anything that is counted


class Settings(SharedSettings):
    """Settings of a run; :func:`parse_settings` adds a block for every method.

    Attributes:
        gate: limits by which a target's stage is promoted, held or refused.
        audit: how a generator is audited, and what is too much.
    """

    gate: GateSettings = GateSettings()
    audit: AuditSettings = AuditSettings()


def parse_settings(method: str, values: dict[str, Any], where: object) -> Settings:
    """Check settings and fill in the defaults.

    Args:
        method: the chosen method.
        values: the shared settings, and a block for any method under its name.
        where: the file they come from.

    Returns:
        The settings, with a block for every method as an attribute of its name.

    Raises:
        ConfigError: an unknown method or key, or a value that does not fit.
        Problems: several of them.
    """
    check_method(method, where)
    origin = where if isinstance(where, SettingsOrigin) else None
    raise_all(
        [
            ConfigError(origin.of(old.split(".")) if origin else where, what, remedy)
            for old, what, remedy in setup.find_old_words(values)
        ]
    )
    blocks: Any = {name: (known.Settings, known.Settings()) for name, known in METHODS.items()}
    settings = config.parse(create_model("Settings", __base__=Settings, **blocks), values, where)
    for key, number in _numbers(values):
        if number > MOST_STEPS:
            what = f"{'.'.join(key)} is more than {MOST_STEPS:,}"
            raise ConfigError(origin.of(key) if origin else where, what, "give a smaller number")
    return settings


def _numbers(values: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every whole number in nested settings, with its key."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _numbers(value, (*key, str(name)))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value, key)
    elif isinstance(values, int):
        yield key, values


def check_method(name: str, where: object) -> None:
    """Refuse what is no method's name.

    Raises:
        ConfigError: says what it is called now, or which there are.
    """
    if name in RENAMED_METHODS:
        raise ConfigError(where, f"method {name!r} is called {RENAMED_METHODS[name]!r} now", "use the new name")
    if name not in METHODS:
        raise ConfigError(where, f"unknown method {name!r}", f"use one of {', '.join(sorted(METHODS))}")


def deciding_settings(method: str, settings: Settings) -> dict[str, Any]:
    """What decides a method's result, as plain values: the shared settings and the method's own block.

    Other methods' blocks are left out, and so is where a weights file lies; its digest decides.
    """
    known = METHODS[method]
    replays = issubclass(known, ReplayMethod) and known.shares_generator
    shared = {*Settings.model_fields} - (set() if replays else {"generator"})
    return settings.model_dump(mode="json", include={*shared, method})


def make_plan(
    sequence: DomainSequence, settings: Settings, pseudonyms: Pseudonyms, package: str = "", forced: bool = False
) -> Plan:
    """The plan of a sequence; ``package`` and ``forced`` as in :class:`Plan`.

    Manifests are told apart by keyed digests: against a plain one a list of guessed patients could be tried.
    """
    keyed = partial(pseudonyms.digest, "plan")  # not that of the ledger, which travels
    plan = {
        "garda": __version__,
        "name": sequence.name,
        "method": sequence.method,
        "seed": sequence.seed,
        "pseudonyms": pseudonyms.pseudonym("check", "key"),
        "task": sequence.task.model_dump(mode="json"),
        "settings": deciding_settings(sequence.method, settings),
        "domains": [
            {"name": d.name, "manifest": keyed(sequence.digests[d.name]) if d.name in sequence.digests else ""}
            for d in sequence.domains
        ],
        "package": package,
        "forced": forced,
    }
    return Plan.model_validate_json(json.dumps(plan))
