"""What the scans of a sequence are: a table for each site, what stands out, and what the task's grid would cut off."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from rich.table import Table
from rich.text import Text

from garda.core.console import Console
from garda.core.errors import DataError, GardaError, raise_all
from garda.data import checks, layouts, sheets
from garda.data.manifest import SPLITS, Case
from garda.data.scan import split_archive
from garda.data.sequence import Domain, DomainSequence
from garda.data.task import Task
from garda.data.volume import Volume, grid_for

LEAST_KEPT = 0.98  # share of a site's labelled foreground that the task's grid has to keep
AIR, BELOW_AIR = -900.0, -1500.0  # Hounsfield units: air is -1000, what scanners put outside the field of view is less
LEAST_SHOWN = 0.02  # share of voxels inside a window, below which it is another scale
WIDTH = 80  # columns of a table
FEWEST = 5  # scans among which one can stand out
STANDS_OUT = 5.0  # times the usual distance from the median, which is 1.4826 of the median distance (Huber 1981)
USUAL = 0.05  # of the median: the usual distance is not taken for less
GEOMETRY = ("row spacing", "column spacing", "slice distance"), ("rows", "columns", "slices")


@dataclass(frozen=True)
class Traits:
    """One scan in numbers.

    Attributes:
        case: its name.
        orientation: where the axes of its file run to, such as ``RAS``; ``picture`` where there are none.
        numbers: spacing (mm), voxels, intensities, and the volume of each class in the unit of :attr:`unit`.
        foreground: labelled voxels of all classes, and those that the task's grid keeps; None without a label.
        unit: ``ml``, or ``px`` where the format has no spacing.
    """

    case: str
    orientation: str
    numbers: Mapping[str, float]
    foreground: tuple[int, int] | None
    unit: str


def measure(volume: Volume, task: Task) -> Traits:
    """The traits of a scan as a run would read it."""
    shown = ((volume.image > 0) & (volume.image < 1)).float().mean()
    numbers = {"lowest": volume.extremes[0], "highest": volume.extremes[1], "shown": float(shown)}
    slices, rows, columns = (float(count) for count in (len(volume.image), *volume.image.shape[-2:]))
    numbers |= dict(zip(GEOMETRY[1], (rows, columns, slices), strict=True))
    if volume.spacing_mm is not None:
        numbers |= dict(zip(GEOMETRY[0], (*volume.spacing_mm[1:], volume.spacing_mm[0]), strict=True))
    size = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000 if volume.spacing_mm else 1.0
    foreground = None
    if volume.label is not None:
        counts = np.bincount(volume.label.numpy().ravel(), minlength=len(task.classes))
        numbers |= {name: float(count) * size for name, count in zip(task.classes, counts, strict=True)}
        del numbers[task.classes[0]]
        inside = volume.label[(slice(None), *grid_for(volume, task).window())]
        foreground = int(counts[1:].sum()), int((inside > 0).sum())
    header = volume.stored.header
    orientation = "picture" if header is None else "".join(nib.aff2axcodes(header.get_best_affine()))
    return Traits(volume.case, orientation, numbers, foreground, "ml" if volume.spacing_mm else "px")


def kept_share(traits: Sequence[Traits]) -> float:
    """Share of the labelled foreground of some scans that the task's grid keeps; 1 where nothing is labelled."""
    labelled = [each.foreground for each in traits if each.foreground is not None]
    whole = sum(count for count, _ in labelled)
    return sum(kept for _, kept in labelled) / whole if whole else 1.0


def outliers(traits: Sequence[Traits]) -> Iterator[str]:
    """What stands out among the scans of a site, a line each.

    >>> scans = [Traits(f"s{n}", "RAS", {"rows": 64.0 + (n == 5) * 100}, None, "ml") for n in range(6)]
    >>> [*outliers(scans)]
    ['s5: rows 164, median 64']
    """
    usual = Counter(each.orientation for each in traits).most_common(1)
    for each in traits:
        if len(traits) >= FEWEST and each.orientation != usual[0][0]:
            yield f"{each.case}: orientation {each.orientation}, most are {usual[0][0]}"
        if each.foreground is not None and kept_share([each]) < LEAST_KEPT:
            yield f"{each.case}: the grid keeps {kept_share([each]):.3f} of the foreground"
    for name in dict.fromkeys(name for each in traits for name in each.numbers if name not in ("lowest", "shown")):
        known = [(each.case, each.numbers[name]) for each in traits if name in each.numbers]
        values = np.array([value for _, value in known])
        median = float(np.median(values))
        distance = np.abs(values - median)
        usually = max(1.4826 * float(np.median(distance)), USUAL * abs(median))
        for (case, value), far in zip(known, distance, strict=True):
            if len(known) >= FEWEST and far > STANDS_OUT * usually:
                yield f"{case}: {name} {value:.4g}, median {median:.4g}"


def check(
    sequence: DomainSequence,
    data: Path,
    console: Console,
    target_labels: bool = False,
    pictures: Path | None = None,
    strict: bool = False,
) -> None:
    """Read every case of a sequence, and tell what each site's scans are and which files no manifest names.

    Args:
        sequence: the domains.
        data: the folder that manifest paths are relative to.
        console: tells the user.
        target_labels: whether targets need labels too, for an oracle that reads them.
        pictures: folder for one picture a site; None for none.
        strict: refuse what would be left out.

    Raises:
        GardaError: everything that is wrong, at once, a grid that cuts off labelled foreground included.
    """
    if pictures is not None:
        sheets.check_folder(pictures)
    owners = {case.where: domain.name for domain in sequence.domains for case in domain.cases}
    cases = [case for domain in sequence.domains for case in domain.cases]
    found: dict[str, list[Traits]] = {domain.name: [] for domain in sequence.domains}
    tiles: dict[str, list[sheets.Tile]] = {domain.name: [] for domain in sequence.domains}

    def see(case: Case, volume: Volume) -> None:
        found[owners[case.where]].append(measure(volume, sequence.task))
        if pictures is not None and len(tiles[owners[case.where]]) < sheets.MOST:
            tiles[owners[case.where]].append(sheets.draw(volume, sequence.task))

    problems = checks.find_problems(sequence, data, cases, console, target_labels, see)
    for domain in sequence.domains:
        console.show(table(domain, found[domain.name], sequence.task))
        problems += find_cut(domain, found[domain.name], sequence.task)
        for line in doubt_scale(found[domain.name], sequence.task):
            console.line(f"{domain.name}: {line}")
        if pictures is not None and tiles[domain.name]:
            console.line(str(sheets.write(pictures / f"{domain.name}.png", tiles[domain.name])))
    try:
        for line in layouts.tell_left(find_left(sequence, data), strict, data):
            console.line(line)
    except DataError as error:
        problems.append(error)
    raise_all(problems)


def doubt_scale(traits: Sequence[Traits], task: Task) -> Iterator[str]:
    """What speaks against the task's scale of intensities, a line each: CT begins near -1000, MR at 0.

    >>> ct = [Traits("s", "RAS", {"lowest": -1024.0, "highest": 1900.0, "shown": 0.4}, None, "ml")]
    >>> task = Task(name="t", classes=("background", "organ"), size=(16, 16))
    >>> [*doubt_scale(ct, task)]
    ['looks like CT, whose values mean the same everywhere: give intensity: {window: [...]} in task.yaml']
    """
    if not traits:
        return
    lowest, shown = (float(np.median([each.numbers[name] for each in traits])) for name in ("lowest", "shown"))
    window = task.intensity.window
    if window is None and lowest <= AIR:
        yield "looks like CT, whose values mean the same everywhere: give intensity: {window: [...]} in task.yaml"
    if window is None and lowest <= BELOW_AIR:
        yield f"values from {lowest:g} are no tissue, and move the percentiles"
    if window is not None and window[0] < 0 <= lowest:
        yield f"no value is below 0, the window begins at {window[0]:g}: not CT, or not rescaled?"
    if window is not None and shown < LEAST_SHOWN:
        yield f"{shown:.3f} of the voxels lie inside the window of {window[0]:g} to {window[1]:g}"


def find_cut(domain: Domain, traits: Sequence[Traits], task: Task) -> list[GardaError]:
    """The error of a grid that cuts off more of a site's labelled foreground than may be."""
    if (share := kept_share(traits)) >= LEAST_KEPT:
        return []
    height, width = task.size
    what = f"the grid of {height} x {width} pixels keeps {share:.3f} of the labelled foreground, below {LEAST_KEPT}"
    return [DataError(domain.name, what, "raise size or spacing_mm in task.yaml, or take fit: patch")]


def find_left(sequence: DomainSequence, data: Path) -> list[str]:
    """Files that lie among those of a sequence and that no manifest names, a line each with the reason."""
    own = {sequence.origin.file.parent, *(Path(case.where.rpartition(":")[0]).parent for case in sequence.source.cases)}
    taken = [file.resolve() for folder in own for file in folder.iterdir() if file.suffix in (".csv", ".yaml")]
    roots: set[Path] = set()
    for domain in sequence.domains:
        files = [data.resolve() / file for case in domain.cases for file in (case.image, *case.labels)]
        taken += files
        parts = [(split_archive(file) or (file,))[0].parent for file in files]
        roots |= {Path(os.path.commonpath(parts))} if parts else set()
    apart = [root for root in sorted(roots) if root.is_dir() and roots.isdisjoint(root.parents)]
    lines = ((root, line) for root in apart for line in layouts.find_left(root, taken))
    return [f"{layouts.shown(root.relative_to(data.resolve()) / line)}" for root, line in lines]


def table(domain: Domain, traits: Sequence[Traits], task: Task) -> Table:
    """A site's fingerprint, at most 80 columns wide."""
    role = "source" if domain.index == 0 else f"target {domain.index}"
    shown = Table(title=Text(f"{domain.name} ({role})"), show_header=False, width=WIDTH, title_justify="left")
    shown.add_column()
    shown.add_column(overflow="fold")
    for name, text in _rows(domain, traits, task):
        shown.add_row(Text(name), Text(text))
    return shown


def _rows(domain: Domain, traits: Sequence[Traits], task: Task) -> Iterator[tuple[str, str]]:
    yield "scans", f"{len(domain.cases)} of {len({case.patient for case in domain.cases})} patients"
    for split in SPLITS:
        cases = domain.split(split)
        labelled = sum(bool(case.labels) for case in cases)
        yield split, f"{labelled} with a label, {len(cases) - labelled} without"
    if not traits:
        return
    turns = Counter(each.orientation for each in traits).most_common()
    yield "orientation", ", ".join(f"{name} {count}" for name, count in turns)
    for title, names, unit in zip(("spacing", "size"), GEOMETRY, (" mm", " voxels"), strict=True):
        parts = [_spread(traits, name) for name in names]
        yield title, " x ".join(parts) + unit if all(parts) else "none"
    yield "intensity", f"from {_spread(traits, 'lowest')} to {_spread(traits, 'highest')}"
    for name in task.classes[1:]:
        known = sum(name in each.numbers for each in traits)
        if known:
            yield name, f"{_spread(traits, name)} {traits[0].unit}, in {known} scans"
    if any(each.foreground for each in traits):
        yield "kept", f"{kept_share(traits):.3f} of the labelled foreground, on {task.size[0]} x {task.size[1]} pixels"
    strange = [*outliers(traits)]
    more = [f"and {len(strange) - layouts.MOST} more"] if len(strange) > layouts.MOST else []
    yield "outliers", "\n".join([*strange[: layouts.MOST], *more]) or "none"


def _spread(traits: Sequence[Traits], name: str) -> str:
    """The median of a number, and its range where scans differ; empty where no scan has it."""
    values = [each.numbers[name] for each in traits if name in each.numbers]
    if not values:
        return ""
    low, middle, high = (f"{value:.4g}" for value in (min(values), float(np.median(values)), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
