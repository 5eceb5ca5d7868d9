"""The page for a clinician: how the network reads this site's scans. It holds patients' images and stays there."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from garda import __version__
from garda.core.console import Console
from garda.core.errors import DataError, raise_all
from garda.data import checks, volume
from garda.data.manifest import Case
from garda.data.sequence import read_domain
from garda.data.task import Task
from garda.data.volume import Volume
from garda.evaluation import continual, metrics, page, report_figures, thumbnails
from garda.evaluation.bootstrap import mean_of_known
from garda.evaluation.metrics import Score
from garda.evaluation.page import Picture
from garda.evaluation.tables import NOTHING, Wide
from garda.evaluation.thumbnails import Slice
from garda.handover import load
from garda.handover.verify import Verified
from garda.models import inference

SHOWN = 6  # patients of each kind
CERTAIN = 0.75  # probability of the answer, below which it is called unsure
MEDIAN, WORST, FEWEST, POOR = 0.8, 0.5, 5, 0.5
RULE = (
    f"The light is a rule of thumb, no clinical limit. Green: in every class a median Dice of {MEDIAN} and a worst "
    f"patient of {WORST} at least, {FEWEST} patients or more, and a site that was learnt and promoted. Red: a median "
    f"under {POOR} in a class, or a site that was refused. Else amber. Dice: 1 where both outlines are one, 0 where "
    "they do not meet."
)


@dataclass(frozen=True)
class ReadScan:
    """What the network says of a scan.

    Attributes:
        where: manifest and line, by which the site finds the scan.
        patient: whose it is.
        scores: one a class; none without a label.
        volumes: of each class, found and drawn; drawn is NaN without a label.
        unit: of the volumes: ml, or voxels where the scan has no spacing.
        unsure: share of unsure voxels among those that are unsure or in a structure.
        slices: to be shown.
    """

    where: str
    patient: str
    scores: list[Score]
    volumes: list[tuple[str, float, float]]
    unit: str
    unsure: float
    slices: list[Slice]

    @property
    def dice(self) -> float:
        """Mean over classes; NaN without a label."""
        return mean_of_known(score.dice for score in self.scores)


def make_page(found: Verified, manifest: Path, data: Path, name: str | None, console: Console) -> str:
    """Read a site's test scans with a package and make the page.

    Raises:
        GardaError: the package, the manifest or a scan does not fit.
    """
    learnt = load.load_package(found.folder)
    task = learnt.method.task
    domain = read_domain(manifest, name or manifest.stem, len(found.entries) - 1, task)
    labelled = checks.labelled_cases(domain)
    cases = labelled or list(domain.split("test"))
    if not cases:
        raise DataError(manifest, "has no test scan", "give a manifest with one")
    raise_all(checks.check_cases(cases, task, data, console))
    network = learnt.method.compute.prepare(learnt.method.network_for(learnt.knowledge, domain.name)).eval()
    scans, bar = [], console.bar("scans")
    for number, case in enumerate(cases, 1):
        scan = volume.read_volume(case, task, data, with_label=bool(labelled))
        shown = learnt.method.standardise(learnt.knowledge, scan, domain.name)
        parts = inference.probabilities(network, shown, task, learnt.method.compute)
        pairs = [tuple(side.cpu() for side in part.max(dim=1)) for part in parts]
        certain, labels = (torch.cat(sides) for sides in zip(*pairs, strict=True))
        scans.append(_read(case, scan, labels, certain, task))
        bar(number, len(cases))
    decision = next((entry.decision for entry in found.entries[::-1] if entry.domain == domain.name), "")
    return _render(domain.name, task, scans, decision)


def _read(case: Case, scan: Volume, labels: torch.Tensor, certain: torch.Tensor, task: Task) -> ReadScan:
    """Scores, volumes and slices of one scan."""
    scores: list[Score] = []
    if scan.label is not None:
        rows = metrics.score_volume(labels, scan.label, scan.labelled, scan.spacing_mm, task.classes, scan.affine)
        scores = [Score(0, "", case.patient, case.case, 0, *row) for row in rows]
    found, unsure = labels.numpy(), (certain < CERTAIN).numpy()
    drawn = None if scan.label is None else scan.label.numpy()
    seen = slice(None) if drawn is None or scan.labelled is None else scan.labelled.numpy()
    each = 1.0 if scan.spacing_mm is None else abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
    volumes = [
        (
            name,
            each * float((found[seen] == index).sum()),
            np.nan if drawn is None else each * float((drawn[seen] == index).sum()),
        )
        for index, name in enumerate(task.classes[1:], 1)
    ]
    share = float(unsure.sum() / max(1, ((found > 0) | unsure).sum()))
    slices = thumbnails.cut_slices(scan.image[:, 0].numpy(), found, drawn, unsure, scan.spacing_mm)
    file, _, line = case.where.rpartition(":")
    where, unit = f"{Path(file).name}, line {line}", "voxels" if scan.spacing_mm is None else "ml"
    return ReadScan(where, case.patient, scores, volumes, unit, share, slices)


def _render(site: str, task: Task, scans: Sequence[ReadScan], decision: str) -> str:
    labelled, classes = any(scan.scores for scan in scans), task.classes[1:]
    scores = [score for scan in scans for score in scan.scores]
    patients = {name: [*continual.patient_scores(scores, "dice", name).values()] for name in classes}
    light, sentence = judge(site, patients if labelled else {}, decision, len({scan.patient for scan in scans}))
    worst, others = choose(scans)
    unit = "/".join(sorted({scan.unit for scan in scans}))
    first = "The six worst patients" if labelled else "The six patients with the most unsure answers"
    return page.render(
        "clinician.html",
        version=__version__,
        site=site,
        classes=classes,
        labelled=labelled,
        light=light,
        sentence=sentence,
        rule=RULE,
        agreement=_agreement(patients if labelled else {}),
        volumes=_volumes(scans, classes, unit, labelled),
        pictures=[*_pictures(scans, classes, unit)] if labelled else [],
        certain=f"{CERTAIN:.0%}",
        unsure=_tell_unsure(scans),
        groups=[(first, [*map(_show, worst)]), ("Six patients at random", [*map(_show, others)])],
        legend=[(name, report_figures.COLOURS[i % len(report_figures.COLOURS)]) for i, name in enumerate(classes)],
    )


def judge(site: str, patients: dict[str, list[float]], decision: str, count: int) -> tuple[str, str]:
    """A light and a sentence.

    Args:
        site: its name.
        patients: Dice of each patient, by class; empty where nobody has drawn.
        decision: of the gate when the site was learnt; empty for a site that was not met.
        count: number of patients.

    >>> judge("b", {"organ": [0.9, 0.8, 0.9, 0.9, 0.7]}, "promote", 5)[0]
    'green'
    >>> judge("b", {"organ": [0.9, 0.8, 0.9, 0.9, 0.7]}, "", 5)[0], judge("b", {"organ": [0.3]}, "promote", 1)[0]
    ('amber', 'red')
    """
    known = "" if decision else f" {site} was never learnt: its scans are read as those of an unknown site."
    known = " The gate refused this site." if decision == "refuse" else known
    known = " The gate asked that a person look before use." if decision == "hold" else known
    if not patients:
        light = "red" if decision == "refuse" else "amber"
        return light, f"nobody has drawn on these {count} patients' scans, so nothing was measured.{known}"
    medians = {name: float(np.median(values)) for name, values in patients.items() if values}
    if not medians:
        return "amber", f"neither person nor network has marked anything in {count} patients.{known}"
    least = min(medians, key=lambda name: medians[name])
    lowest = min(min(values) for values in patients.values() if values)
    good = min(medians.values()) >= MEDIAN and lowest >= WORST and decision in ("source", "promote", "ungated")
    fewest = min(len(values) for values in patients.values())
    light = (
        "red" if medians[least] < POOR or decision == "refuse" else "green" if good and fewest >= FEWEST else "amber"
    )
    text = (
        f"in {count} patients of {site}, half of all agree with the drawing by a Dice of {medians[least]:.2f} or more "
    )
    return light, f"{text}in the hardest class ({least}); the worst single value is {lowest:.2f}.{known}"


def choose(scans: Sequence[ReadScan]) -> tuple[list[ReadScan], list[ReadScan]]:
    """A scan each of the worst patients and of others at random, always the same; the most unsure, without labels."""

    def badness(scan: ReadScan) -> float:
        return -scan.dice if scan.dice == scan.dice else scan.unsure - 2  # after all that were measured

    best: dict[str, ReadScan] = {}
    for scan in sorted(scans, key=badness, reverse=True):
        best.setdefault(scan.patient, scan)
    ranked = [*best.values()]
    rest = ranked[SHOWN:]
    return ranked[:SHOWN], random.Random(0).sample(rest, min(SHOWN, len(rest)))


def _agreement(patients: dict[str, list[float]]) -> Wide:
    rows = [
        (name, str(len(values)), *(f"{of(values):.2f}" if values else NOTHING for of in (np.median, min)))
        for name, values in patients.items()
    ]
    return Wide("Dice over patients", None, ("class", "n", "median", "worst"), rows, words=1)


def _volumes(scans: Sequence[ReadScan], classes: Sequence[str], unit: str, labelled: bool) -> Wide:
    rows: list[tuple[str, ...]] = []
    for name in classes:
        pairs = _pairs(scans, name)
        cells = [f"{np.median(pairs[:, 0]):.1f}"]
        if labelled:
            apart = pairs[:, 0] - pairs[:, 1]
            range_ = f"{apart.min():+.1f} to {apart.max():+.1f}"
            cells += [f"{np.median(pairs[:, 1]):.1f}", f"{np.median(apart):+.1f}", range_]
        rows.append((name, str(len(pairs)), *cells))
    heading = ("class", "scans", "found", "drawn", "found less drawn", "from, to")
    title = f"Volumes in {unit}, medians over scans"
    return Wide(title, None, heading if labelled else heading[:3], rows, words=1)


def _pairs(scans: Sequence[ReadScan], name: str) -> Any:
    """(N, 2) volumes of a class, found and drawn."""
    return np.array([pair for scan in scans for own, *pair in scan.volumes if own == name])


def _pictures(scans: Sequence[ReadScan], classes: Sequence[str], unit: str) -> Iterator[Picture]:
    drawn = {name: _pairs(scans, name)[:, ::-1] for name in classes}
    labels = (f"drawn ({unit})", f"found ({unit})")
    yield report_figures.draw_scatter("volumes", "Volumes: on the line both are equal", labels, drawn, diagonal=True)
    points = np.array([(scan.unsure, scan.dice) for scan in scans])
    title = "Does it know? Each point is a scan; where it knows, points fall from the left top to the right bottom"
    labels = ("share that is unsure", "Dice, mean over classes")
    yield report_figures.draw_scatter("unsure", title, labels, {"scans": points}, diagonal=False)


def _tell_unsure(scans: Sequence[ReadScan]) -> str:
    shares = [scan.unsure for scan in scans]
    most = scans[int(np.argmax(shares))]
    median = f"Of what it marks or doubts, it doubts {np.median(shares):.0%} in the median scan"
    return f"{median}, and {most.unsure:.0%} in the worst ({most.where})."


def _show(scan: ReadScan) -> dict[str, Any]:
    dice = [f"{score.name} {score.dice:.2f}" for score in scan.scores if score.dice == score.dice]
    text = ", ".join([*(["Dice " + ", ".join(dice)] if dice else []), f"{scan.unsure:.0%} unsure"])
    slices = [{"number": each.number, "data": thumbnails.draw(each)} for each in scan.slices]
    return {"where": scan.where, "text": text, "slices": slices}
