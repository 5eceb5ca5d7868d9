"""What is adapted to what: domains in order, learnt how; read from a pipeline YAML and checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from garda.core.config import Config, Printable, SettingsOrigin, load, load_yaml, merge
from garda.core.errors import ConfigError, DataError, GardaError, Problems, raise_all
from garda.data.manifest import Case, Split, digest_manifest, read_manifest
from garda.data.task import Task

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of a domain: it names files, folders and metrics
SHIPPED = ("small", "paper")  # configurations that are part of garda
DomainName = Annotated[str, Field(pattern=NAME)]


@dataclass(frozen=True)
class Domain:
    """One site's cases.

    Attributes:
        name: the site's name.
        index: the position in the sequence; 0 is the source.
        cases: in manifest order; empty for a domain learnt at another site, of which the name alone is known here.
    """

    name: str
    index: int
    cases: tuple[Case, ...]

    def split(self, split: Split) -> tuple[Case, ...]:
        """The cases of one split, in manifest order."""
        return tuple(case for case in self.cases if case.split == split)


class Pipeline(Config):
    """The contents of a pipeline YAML: which domains, in which order, learnt how.

    Attributes:
        name: the sequence's name.
        manifests: folder with ``task.yaml`` and the domains' CSV files, relative to the pipeline file.
        source: the labelled domain; a name of letters, digits and ``_.-`` that starts with a letter or digit.
        targets: the unlabelled domains, in the order of adaptation; names as above.
        config: ``small`` or ``paper``, which ship with garda, or a YAML file, relative to the pipeline file.
        method: the method's name.
        seed: seed of everything random.
        settings: changes laid over ``config``.
    """

    name: Printable
    manifests: str
    source: DomainName
    targets: tuple[DomainName, ...] = ()
    config: str
    method: str
    seed: int = Field(default=0, ge=0, lt=2**31)
    settings: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class DomainSequence:
    """Everything that decides a run.

    Attributes:
        name: the pipeline's name.
        task: what is segmented.
        source: the labelled domain.
        targets: the unlabelled domains in order.
        method: name of the method.
        settings: the merged settings, still unparsed: each method knows its own model of them.
        origin: where the settings come from, for messages and for a comparison, which notes the file's digest.
        digests: SHA-256 of each domain's manifest file, by domain.
        seed: seed of everything random.
    """

    name: str
    task: Task
    source: Domain
    targets: tuple[Domain, ...]
    method: str
    settings: dict[str, Any]
    origin: SettingsOrigin
    digests: dict[str, str]
    seed: int

    @property
    def domains(self) -> tuple[Domain, ...]:
        """Source and targets, in order."""
        return (self.source, *self.targets)


def read_sequence(
    pipeline_file: Path,
    *,
    config: Path | None = None,
    method: str | None = None,
    seed: int | None = None,
    changes: dict[str, Any] | None = None,
) -> DomainSequence:
    """Read a pipeline with its configuration, task and manifests.

    Args:
        pipeline_file: a YAML of ``pipelines/``.
        config: takes the place of the pipeline's config.
        method: takes the place of the pipeline's method.
        seed: takes the place of the pipeline's seed; 0 to 2**31 - 1.
        changes: settings laid over the pipeline's own.

    Raises:
        ConfigError: a YAML file does not fit in one place.
        DataError: a manifest does not fit in one place.
        Problems: one of the YAML files, or manifests, do not fit in several.
    """
    pipeline = load(Pipeline, pipeline_file)
    folder = pipeline_file.parent / pipeline.manifests
    task = load(Task, folder / "task.yaml")
    names = (pipeline.source, *pipeline.targets)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(pipeline_file, f"domain {name!r} stands twice in the sequence", "name each domain once")
    domains = _read_domains(folder, names, task)
    config = find_config(config or pipeline_file.parent / pipeline.config)
    method, changes = method or pipeline.method, changes or {}
    origin = SettingsOrigin(config, ((f"{pipeline_file}, settings", pipeline.settings), ("--set", changes)))
    settings = merge(merge(load_yaml(config), pipeline.settings), changes)
    digests = {name: digest_manifest(folder / f"{name}.csv") for name in names}
    seed = pipeline.seed if seed is None else seed
    return DomainSequence(pipeline.name, task, domains[0], domains[1:], method, settings, origin, digests, seed)


def find_config(path: Path) -> Path:
    """A configuration's file: that at ``path``, or the one of this name that ships with garda.

    >>> find_config(Path("small")).name
    'small.yaml'
    """
    installed = Path(__file__).with_name("configs")
    shipped = installed if installed.is_dir() else Path(__file__).parents[2] / "configs"  # of a checkout
    own = shipped / f"{path.name}.yaml"
    return own if not path.exists() and path.name in SHIPPED and own.exists() else path


def read_domain(manifest: Path, name: str, index: int, task: Task) -> Domain:
    """A domain of one manifest.

    Raises:
        ConfigError: the name is none.
        DataError: the manifest does not fit.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(manifest, f"{name!r} is no domain's name", "give --name with letters, digits and _.-")
    return Domain(name, index, read_manifest(manifest, task))


def _read_domains(folder: Path, names: Sequence[str], task: Task) -> tuple[Domain, ...]:
    """The domains in order; what is wrong with any of their manifests is told in one go."""
    domains: list[Domain] = []
    problems: list[GardaError] = []
    for index, name in enumerate(names):
        try:
            domains.append(Domain(name, index, read_manifest(folder / f"{name}.csv", task)))
        except (DataError, Problems) as error:
            problems += error.problems if isinstance(error, Problems) else [error]
    raise_all(problems)
    return tuple(domains)


def find_gaps(sequence: DomainSequence, target_labels: bool = False) -> list[GardaError]:
    """What a sequence lacks before any file is opened: splits without cases, a source without labels.

    Args:
        sequence: the domains; one without any case was learnt at another site, and lacks nothing.
        target_labels: whether targets need labels too, for an oracle that reads them.
    """
    gaps: list[GardaError] = []
    for domain in (domain for domain in sequence.domains if domain.cases):
        train = domain.split("train")
        if not train:
            gaps.append(DataError(domain.name, "the train split is empty", "give at least one case the split train"))
        unlabelled = [case for case in train if not case.labels]
        if unlabelled and domain is sequence.source:
            rows = ", ".join(case.where.rpartition(":")[2] for case in unlabelled)
            more = f", those of lines {rows} have none" if len(unlabelled) > 1 else ""
            what = f"a source needs a label for every training case{more}"
            gaps.append(DataError(unlabelled[0].where, what, "fill column label"))
        elif unlabelled == list(train) and train and target_labels:
            what = f"{sequence.method} needs a label for one training case at least"
            gaps.append(DataError(train[0].where, what, "fill column label"))
    return gaps
