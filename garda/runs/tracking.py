"""What a run reports while it goes on, and a tracker that keeps it in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from garda.data.manifest import Split

Status = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class RunDescription:
    """What a run is, before anything is learnt.

    Attributes:
        name: the sequence's name; runs of one sequence are shown side by side.
        method: the method's name.
        seed: the run's seed.
        parameters: settings, nested as they are; plain values.
        manifests: per domain, source first: name, keyed digest of the manifest file, number of cases by split.
        stages: names of the stages, in order.
    """

    name: str
    method: str
    seed: int
    parameters: Mapping[str, Any]
    manifests: Sequence[tuple[str, str, Mapping[Split, int]]]
    stages: Sequence[str]


class Tracker(Protocol):
    """Listens to one run. No call raises because a store is out of reach."""

    def start(self, run: RunDescription) -> None:
        """A run begins or goes on; comes before all else, once a process."""

    def losses(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Losses of a training step, by name; the caller thins them to at most 500 steps a stage.

        Args:
            stage: a stage's name, or that name, ``-`` and a phase of the stage (``1-SiteB-generator``).
            step: counts up within the stage or phase; a step that came before is a repetition and is left out.
            values: each loss by name.
        """

    def stage_ended(self, stage: str, stage_index: int, metrics: Mapping[str, float]) -> None:
        """A stage has been learnt and scored; may be called again, only what is new counts.

        Args:
            stage: the stage's name.
            stage_index: 0 for the source; ``stage_index + 1`` domains have been seen.
            metrics: such as ``dice/<domain>/<class>``; a value that is not finite is undefined and left out.
        """

    def artifact(self, path: Path) -> None:
        """A file in the run folder is worth showing; later calls replace it.

        Raises:
            ValueError: the file lies outside the run folder.
        """

    def sealed(self, stage: str, site: str, facts: Mapping[str, str], card: str) -> None:
        """A stage's package is there: what it is, by name, and its card as Markdown."""

    def finish(self, status: Status) -> None:
        """The process is done with the run."""

    def catch_up(self) -> None:
        """Send what is missing of a run that has ended; takes the place of all other calls."""

    def check_delivered(self) -> str:
        """How many metrics of the run its store has, in words.

        Raises:
            Undelivered: not all.
        """


@dataclass
class InMemory:
    """A :class:`Tracker` that writes nothing.

    Attributes:
        runs: each description it was started with.
        curves: (stage, loss name) -> {step: value}.
        metrics: (stage index, metric name) -> value.
        artifacts: files, each once, in the order of their first mention.
        facts: of each sealed stage.
        status: how the run ended; None while it goes on.

    >>> tracker = InMemory()
    >>> tracker.losses("0-SiteA", 0, {"dice": 0.5})
    >>> tracker.losses("0-SiteA", 0, {"dice": 0.4})  # a step that is repeated
    >>> tracker.curves
    {('0-SiteA', 'dice'): {0: 0.5}}
    """

    runs: list[RunDescription] = field(default_factory=list)
    curves: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    metrics: dict[tuple[int, str], float] = field(default_factory=dict)
    artifacts: list[Path] = field(default_factory=list)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    status: Status | None = None

    def start(self, run: RunDescription) -> None:
        """See :class:`Tracker`."""
        self.runs.append(run)
        self.status = None

    def losses(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        for name, value in values.items():
            self.curves.setdefault((stage, name), {}).setdefault(step, value)

    def stage_ended(self, stage: str, stage_index: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self.metrics |= {(stage_index, name): value for name, value in metrics.items()}

    def artifact(self, path: Path) -> None:
        """See :class:`Tracker`."""
        if path not in self.artifacts:
            self.artifacts.append(path)

    def sealed(self, stage: str, site: str, facts: Mapping[str, str], card: str) -> None:
        """See :class:`Tracker`."""
        self.facts[stage] = {"site": site, **facts}

    def finish(self, status: Status) -> None:
        """See :class:`Tracker`."""
        self.status = status

    def catch_up(self) -> None:
        """See :class:`Tracker`."""

    def check_delivered(self) -> str:
        """See :class:`Tracker`."""
        return "no store"
