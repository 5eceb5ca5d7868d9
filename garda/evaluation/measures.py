"""What a table says of a row: every number with its interval, and how two rows differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from garda.evaluation import bootstrap, continual
from garda.evaluation.bootstrap import Interval
from garda.evaluation.continual import Metric, PatientKey
from garda.evaluation.metrics import Score
from garda.methods.oracles import Oracle
from garda.methods.registry import METHODS

METRICS: tuple[Metric, ...] = ("dice", "hd95")
LOWER, UPPER = "source_only", "supervised"  # the rows between which the gap lies


class Key(NamedTuple):
    """Which number: empty domain for the mean over the domains, empty class for the mean over the classes."""

    quantity: str
    domain: str = ""
    name: str = ""


@dataclass(frozen=True)
class Measure:
    """A number of a row; NaN where it is undefined.

    Attributes:
        value: the number.
        interval: 95 % interval over patients and seeds, in ``unit``, where there are two patients.
        patients: number of patients behind the number; None for what is not measured patient by patient.
        unit: empty for Dice, shares and differences of them; ``mm``, ``px``, ``s``, ``bytes``.
    """

    value: float
    interval: Interval | None = None
    patients: int | None = None
    unit: str = ""


Measures = dict[Key, Measure]


@dataclass(frozen=True)
class Difference:
    """How a row differs from another in Dice after the last stage, patient by patient and seed by seed.

    Attributes:
        row: name of the row.
        against: name of the row that is subtracted.
        seeds: number of seeds that both have.
        measures: the difference for each domain and class, and their means, all with quantity ``dice``.
    """

    row: str
    against: str
    seeds: int
    measures: Measures


@dataclass(frozen=True)
class Comparison:
    """The rows of one sequence.

    Attributes:
        domains: names of source and targets, in order.
        classes: names of the foreground classes.
        note: repeated with every table, such as the reason why a patient stands in two splits; None for none.
        rows: see :func:`garda.runs.compare_plan.find_rows`.
    """

    domains: tuple[str, ...]
    classes: tuple[str, ...]
    note: str | None
    rows: tuple[Row, ...]

    def last_stage(self, row: Row) -> list[Score]:
        """The scores of a row after the last stage, all seeds."""
        return [score for score in row.scores if score.stage == len(self.domains) - 1]


def measure(comparison: Comparison) -> dict[str, Measures]:
    """Every number of every row, by the row's name."""
    found = {
        row.name: _scan_measures(comparison, row) | _continual_measures(comparison, row) | _cost_measures(row)
        for row in comparison.rows
    }
    for measures in found.values():
        measures |= _gap_measures(comparison.domains[1:], measures, found)
    return found


def _scan_measures(comparison: Comparison, row: Row) -> Measures:
    """Dice and HD95 after the last stage: for each domain and class, and over all of them."""
    scores = comparison.last_stage(row)
    found: Measures = {}
    for metric, name in itertools.product(METRICS, ("", *comparison.classes)):
        values = continual.patient_scores(scores, metric, name or None)
        found |= _domain_measures(comparison, values, Key(metric, name=name), scores if metric == "hd95" else [])
    return found


def _domain_measures(
    comparison: Comparison, values: Mapping[PatientKey, float], key: Key, measured: Sequence[Score] = ()
) -> Measures:
    """All domains together, under the empty name, and each alone.

    Undefined where the units of what was ``measured`` differ: pixels are not averaged with millimetres.
    """
    found: Measures = {}
    for domain in ("", *comparison.domains):
        domains = [domain] if domain else comparison.domains
        mean, interval, patients = bootstrap.estimate(continual.score_arrays(values, domains))
        units = sorted({score.unit for score in measured if score.domain in domains})
        if len(units) > 1:
            mean, interval = math.nan, None
        found[key._replace(domain=domain)] = Measure(mean, interval, patients, "/".join(units))
    return found


def _continual_measures(comparison: Comparison, row: Row) -> Measures:
    """Forgetting, transfer and plasticity: the mean over the seeds of what each seed's matrix says."""
    numbers = [continual.summary(continual.matrix(run.scores, comparison.domains, "dice")) for run in row.runs.values()]
    names = dict.fromkeys(name for of_seed in numbers for name in of_seed if name != "average_over_seen")
    means = {name: bootstrap.mean_of_known(seed.get(name, math.nan) for seed in numbers) for name in names}
    return {Key(name): Measure(mean) for name, mean in means.items()}


def _cost_measures(row: Row) -> Measures:
    """Training time and what is kept: means over the seeds."""
    runs = row.runs.values()
    targets = max(score.stage for score in row.scores)
    added = [(run.bytes_last - run.bytes_first) / targets if targets else math.nan for run in runs]
    return {
        Key("training_seconds"): Measure(bootstrap.mean_of_known(run.seconds for run in runs), unit="s"),
        Key("bytes_per_domain"): Measure(bootstrap.mean_of_known(added), unit="bytes"),
        Key("bytes"): Measure(bootstrap.mean_of_known(run.bytes_last for run in runs), unit="bytes"),
    }


def _gap_measures(targets: Sequence[str], own: Measures, rows: Mapping[str, Measures]) -> Measures:
    """The share of the gap that is closed on each target, and its mean over the targets that have a gap."""
    found: Measures = {}
    if LOWER in rows and UPPER in rows:
        for target in targets:
            key = Key("dice", target)
            share = continual.gap_closed(own[key].value, rows[LOWER][key].value, rows[UPPER][key].value)
            found[Key("gap_closed", target)] = Measure(share)
    return {Key("gap_closed"): Measure(bootstrap.mean_of_known(measure.value for measure in found.values())), **found}


def differences(
    comparison: Comparison, measures: Mapping[str, Measures], against: str | None = None
) -> list[Difference]:
    """Each row's paired difference from a reference.

    Args:
        comparison: the rows.
        measures: what :func:`measure` gave.
        against: name of the reference; None takes for each row the best other row that is no oracle, by mean Dice,
            of those that share a seed with it.
    """
    dice = {name: known[Key("dice")].value for name, known in measures.items()}
    scored = [row for row in comparison.rows if not math.isnan(dice[row.name])]
    found = []
    for row in comparison.rows:
        others = [other for other in scored if other is not row]
        if against:
            others = [other for other in others if other.name == against]
        else:
            others = [other for other in others if not other.bound and row.runs.keys() & other.runs]
        if others:
            found.append(_difference(comparison, row, max(others, key=lambda other: dice[other.name])))
    return found


def _difference(comparison: Comparison, row: Row, other: Row) -> Difference:
    measures: Measures = {}
    sides = comparison.last_stage(row), comparison.last_stage(other)
    for name in ("", *comparison.classes):
        ours, theirs = (continual.patient_scores(side, "dice", name or None) for side in sides)
        measures |= _domain_measures(comparison, continual.paired_difference(ours, theirs), Key("dice", name=name))
    return Difference(row.name, other.name, len(row.runs.keys() & other.runs.keys()), measures)


@dataclass(frozen=True)
class FinishedRun:
    """What one run has left.

    Attributes:
        scores: of every stage.
        seconds: spent on training, what was taken from the cache included; NaN where it was not noted.
        bytes_first: what is kept after the source's stage; NaN where it is gone.
        bytes_last: what is kept after the last stage; NaN where it is gone.
    """

    scores: list[Score]
    seconds: float
    bytes_first: float
    bytes_last: float


@dataclass(frozen=True)
class Row:
    """A method, or a variant of one, with every seed that has been finished.

    Attributes:
        method: the method's name.
        label: tells a variant from the method as configured; empty for the latter.
        runs: seed -> run, by rising seed; at least one.
    """

    method: str
    label: str
    runs: dict[int, FinishedRun]

    @property
    def name(self) -> str:
        """As the table calls it."""
        return row_name(self.method, self.label)

    @property
    def bound(self) -> bool:
        """Whether the method is an oracle, which sees what no site may see and so stands outside the contract."""
        return issubclass(METHODS[self.method], Oracle)

    @property
    def scores(self) -> list[Score]:
        """Those of all seeds."""
        return [score for run in self.runs.values() for score in run.scores]


def row_name(method: str, label: str) -> str:
    """``method``, or ``method (label)`` for a variant.

    >>> row_name("tent", ""), row_name("tent", "fast")
    ('tent', 'tent (fast)')
    """
    return f"{method} ({label})" if label else method
