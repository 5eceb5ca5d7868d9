"""What decides a run: ``setup.json`` of a package, ``plan.json`` of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from garda.core import files
from garda.core.config import Config
from garda.core.errors import RunFolderError

FORMAT = 1  # of packages


class PlannedDomain(Config):
    """A domain's name and the SHA-256 of its manifest file."""

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
    name: str
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
    """The first key, depth first, under which two trees of plain values differ; None if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(name, old.get(name), new.get(name)) for name in sorted({*old, *new})]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else key
    inner = (differing_key(a, b, f"{key}.{name}" if key else name) for name, a, b in pairs)
    return next((found for found in inner if found is not None), None)
