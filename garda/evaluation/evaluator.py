"""Scoring, one of the two roles of a stage: it reads labelled test scans and learns nothing."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from garda.core.pseudonyms import Pseudonyms
from garda.data import checks, components, holdout
from garda.data.sequence import Domain
from garda.data.task import Groups
from garda.evaluation import bootstrap, continual, metrics
from garda.evaluation.metrics import Score
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models import inference

MUCH = 0.1  # of Dice, by which other classes for the same labels would have to fit better
ENOUGH = 5  # patients; fewer give no interval
FALL, FALL_OF_FEW = 0.01, 0.02  # of mean Dice, with an interval and without
MOST = 20  # scans of the source by which post-processing is chosen


@dataclass(frozen=True)
class TestScans:
    """What is read to score a stage.

    Attributes:
        domains: whose labelled test scans.
        data: the folder that manifest paths are relative to.
        pseudonyms: stand for patients and scans.
    """

    domains: Sequence[Domain]
    data: Path
    pseudonyms: Pseudonyms


def score_scans(
    scans: TestScans,
    method: Method,
    knowledge: Knowledge,
    stage: int,
    seed: int,
    progress: Callable[[int, int], None],
    seen: Callable[[str, Tensor, Tensor], None] | None = None,
) -> list[Score]:
    """Score knowledge of a stage, one scan in memory at a time.

    Args:
        scans: what is read.
        method: how a domain is read.
        knowledge: what is scored.
        stage: the stage after which it is.
        seed: the run's.
        progress: receives (scans done, scans in all).
        seen: receives a domain's name, and (D, H, W) class indices predicted and labelled, of every scan.

    Returns:
        a score for every labelled test scan and foreground class, in the order of domains, manifest rows and
        classes.

    Raises:
        DataError: a scan or its label cannot be read.
    """
    task = method.task
    cases = [(domain.name, case) for domain in scans.domains for case in checks.labelled_cases(domain)]
    rows: list[Score] = []

    @lru_cache(maxsize=1)
    def network(name: str) -> nn.Module:
        return method.compute.prepare(method.network_for(knowledge, name)).eval()

    for number, (name, case) in enumerate(cases, start=1):
        scan = checks.read_unchanged(case, task, scans.data, with_label=True)
        label = cast(Tensor, scan.label)  # the case has a label, which was read
        shown = method.standardise(knowledge, scan, name)
        predicted = inference.segment(network(name), shown, task, method.compute, knowledge.largest)
        patient = scans.pseudonyms.pseudonym("patient", f"{name}/{case.patient}")  # two sites may each have a "001"
        pseudonym = scans.pseudonyms.pseudonym("case", f"{name}/{case.case}")
        found = metrics.score_volume(predicted, label, scan.labelled, scan.spacing_mm, task.classes, scan.affine)
        rows += [Score(stage, name, patient, pseudonym, seed, *row) for row in found]
        if seen is not None:
            seen(name, predicted.cpu(), label)
        progress(number, len(cases))
    return rows


def choose_postprocessing(method: Method, knowledge: Knowledge, source: Domain, data: Path) -> Groups:
    """Of which classes the largest piece alone is to be kept, by scans of the source that are labelled as a whole.

    Args:
        method: how the source is read.
        knowledge: after the source.
        source: its held-out cases are read, or its training cases where there are none.
        data: the folder that manifest paths are relative to.
    """
    train, held_out = holdout.split_cases(source)
    cases = [case for case in held_out or train if case.labels][:MOST]
    network = method.compute.prepare(method.network_for(knowledge, source.name)).eval()
    pairs = []
    for case in cases:
        scan = checks.read_unchanged(case, method.task, data, with_label=True)
        if scan.label is not None and (scan.labelled is None or scan.labelled.all()):
            shown = method.standardise(knowledge, scan, source.name)
            found = inference.segment(network, shown, method.task, method.compute)
            pairs.append((found.to(torch.uint8), scan.label.to(torch.uint8)))  # all are kept: an eighth of the memory
    return components.choose_groups(pairs, len(method.task.classes))


def describe_falls(stage: int, scores: Iterable[Score]) -> Iterator[str]:
    """A line for each site whose patients are segmented worse after a stage than before it.

    The mean of the patients' differences in Dice must be beyond ``FALL``, and their 95 % interval above 0; with fewer
    than five patients there is no interval, and the mean must be beyond ``FALL_OF_FEW``.

    Args:
        stage: its number.
        scores: rows of one seed; patients without a score before and after the stage are left out.
    """
    dice = continual.patient_scores(scores, "dice")
    pairs = defaultdict[str, list[tuple[float, float]]](list)
    for key, after in dice.items():
        if key.stage == stage and (before := dice.get(key._replace(stage=stage - 1))) is not None:
            pairs[key.domain].append((before, after))
    for name, both in pairs.items():
        (before, after), enough = np.mean(both, axis=0), len(both) >= ENOUGH
        interval = bootstrap.bootstrap_interval([one - other for one, other in both]) if enough else None
        if before - after > (FALL if enough else FALL_OF_FEW) and (interval is None or interval.low > 0):
            yield f"Dice of {name} fell from {before:.3f} to {after:.3f} in this stage"


class Confusion:
    """Voxels by the class that was predicted and the one that is labelled, (classes, classes), for each domain."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.counts: dict[str, np.ndarray] = {}

    def add(self, domain: str, predicted: Tensor, label: Tensor) -> None:
        """Count the voxels of one scan; both maps are (D, H, W)."""
        both = (predicted.long() * self._classes + label.long()).flatten()
        counts = torch.bincount(both, minlength=self._classes**2).numpy().reshape(self._classes, -1)
        self.counts[domain] = self.counts.get(domain, 0) + counts

    def advise(self, names: Sequence[str]) -> Iterator[str]:
        """A line for each domain whose labels would fit other classes, by their foreground ``names``, much better."""
        for domain in self.counts:
            best, now, then = self.permuted(domain)
            if then - now >= MUCH:
                pairs = ", ".join(f"{label} for {name}" for label, name in zip(best, names, strict=True))
                yield (
                    f"{domain}: label indices {pairs} would raise Dice from {now:.3f} to {then:.3f}; if the site's "
                    f"codes differ, say so in {domain}.yaml beside the manifest"
                )

    def permuted(self, domain: str) -> tuple[list[int], float, float]:
        """The label that fits each foreground class best, and the mean Dice of all voxels as it is, and with these.

        >>> confusion = Confusion(3)
        >>> confusion.add("a", torch.tensor([[[0, 1, 2, 2]]]), torch.tensor([[[0, 2, 1, 1]]]))
        >>> confusion.permuted("a")
        ([2, 1], 0.0, 1.0)
        """
        counts = self.counts[domain]
        sizes = counts.sum(1)[1:, None] + counts.sum(0)[None, 1:]
        dice = 2 * counts[1:, 1:] / np.maximum(sizes, 1)
        rows, columns = linear_sum_assignment(dice, maximize=True)
        return [int(column) + 1 for column in columns], float(np.diag(dice).mean()), float(dice[rows, columns].mean())
