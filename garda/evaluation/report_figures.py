"""Pictures of reports, each with the numbers that it shows; see :mod:`garda.evaluation.figures` for the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from garda.evaluation import bootstrap, continual, figures
from garda.evaluation.bootstrap import Array, Estimate
from garda.evaluation.measures import Comparison, Difference, Key, Row
from garda.evaluation.page import Picture

UP, DOWN = "#0072b2", "#d55e00"  # told apart with any colour vision
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
Band = tuple[Array, Array]  # (S,) steps and (N, S) values, a line a seed
Mark = tuple[str, Estimate]


def draw_matrices(comparison: Comparison) -> Picture:
    """Stages and domains as heat maps, a row each."""
    lines = []
    for row in comparison.rows:
        found = continual.matrix(row.scores, comparison.domains, "dice")
        for (stage, domain), value in np.ndenumerate(found.values):
            ends = found.intervals[stage, domain]
            numbers = ["" if math.isnan(number) else number for number in (value, *ends)]
            lines.append([row.name, stage, found.domains[domain], *numbers, found.patients[domain]])
    heading = ("row", "stage", "domain", "dice", "low", "high", "patients")
    title = "Dice after every stage (down) on every domain (across)"
    return Picture("matrices", title, figures.draw_matrices(comparison), heading, lines)


def draw_curves(comparison: Comparison) -> Picture:
    """Each domain's Dice over the stages."""
    lines: list[list[object]] = []
    for row in comparison.rows:
        for seed, run in row.runs.items():
            found = continual.matrix(run.scores, comparison.domains, "dice")
            for (stage, domain), value in np.ndenumerate(found.values):
                lines.append([row.name, seed, stage, found.domains[domain], "" if math.isnan(value) else value])
    title = "Dice of every domain over the stages; a band from the lowest to the highest seed, where there are several"
    return Picture("curves", title, figures.draw_curves(comparison), ("row", "seed", "stage", "domain", "dice"), lines)


def before_and_after(row: Row, domain: str, before: int, after: int) -> Array:
    """(N, 2) Dice of a domain's patients after two stages, each the mean over the seeds that have both."""
    found: dict[str, list[tuple[float, float]]] = {}
    values = continual.patient_scores((score for score in row.scores if score.domain == domain), "dice")
    for key, value in values.items():
        if key.stage == after and (old := key._replace(stage=before)) in values:
            found.setdefault(key.patient, []).append((values[old], value))
    return np.array([np.mean(pairs, axis=0) for pairs in found.values()]).reshape(-1, 2)


def draw_slopes(comparison: Comparison, row: Row) -> Picture:
    """Every patient of every target, before and after the target's own stage; no patient is named."""
    targets = comparison.domains[1:]
    figure = figures.new_figure(1.9 * max(len(targets), 2) + 0.6, 2.6)
    lines = []
    for axes, (index, domain) in zip(
        figures.panels_of(figure, len(targets), 1, max(len(targets), 1)), enumerate(targets, 1), strict=False
    ):
        pairs = before_and_after(row, domain, index - 1, index)
        for number, (old, new) in enumerate(pairs.tolist(), 1):
            axes.plot([0, 1], [old, new], color=UP if new >= old else DOWN, linewidth=0.8, marker=".", markersize=3)
            lines.append([domain, number, old, new])
        axes.set_title(f"{domain}, n={len(pairs)}", fontsize="small")
        axes.set(xlim=(-0.2, 1.2))
        axes.set_xticks([0, 1], ["before", "after"], fontsize="small")
    figure.supylabel("Dice, mean over classes", fontsize="small")
    title = f"{row.name}: every test patient before and after its site's own stage (blue: not worse, orange: worse)"
    name = "slopes-" + "".join(sign if sign.isalnum() or sign in "._" else "-" for sign in row.name).strip("-")
    return Picture(name, title, figure, ("domain", "patient", "before", "after"), lines)


def draw_differences(comparison: Comparison, found: Sequence[Difference]) -> Picture:
    """Paired differences of rows, domain by domain."""
    marks: list[tuple[str, list[Mark]]] = []
    for each in found:
        known = {domain or "all": each.measures[Key("dice", domain)] for domain in ("", *comparison.domains)}
        estimates = [(name, Estimate(m.value, m.interval, m.patients or 0)) for name, m in known.items()]
        marks.append((f"{each.row} less {each.against}", estimates))
    return _forest("differences", "Paired differences of Dice after the last stage, with 95 % intervals", marks)


def draw_gains(comparison: Comparison, row: Row) -> Picture:
    """What a run alone has gained on each domain: the last stage less the first, paired by patient."""
    last = len(comparison.domains) - 1
    marks = []
    for domain in comparison.domains:
        pairs = before_and_after(row, domain, 0, last)
        if len(pairs):
            marks.append((domain, bootstrap.estimate([(pairs[:, 1] - pairs[:, 0])[None]])))
    title = "Dice after the last stage less that after the source's, paired by patient, with 95 % intervals"
    return _forest("differences", title, [(row.name, marks)])


def _forest(name: str, title: str, groups: Sequence[tuple[str, Sequence[Mark]]]) -> Picture:
    lines, labels = [], []
    figure = figures.new_figure(6.4, 0.9 + 0.24 * sum(1 + len(marks) for _, marks in groups))
    axes = figure.add_subplot()
    place = 0
    for group, marks in groups:
        labels.append((place, group))
        for label, found in marks:
            place += 1
            labels.append((place, f"{label}, n={found.patients}"))
            low, high = found.interval or (math.nan, math.nan)
            if not math.isnan(found.mean):
                axes.plot([low, high], [place, place], color="black", linewidth=1.2)
                axes.plot([found.mean], [place], "s", color=UP if found.mean >= 0 else DOWN, markersize=5)
            numbers = ["" if math.isnan(number) else number for number in (found.mean, low, high)]
            lines.append([group, label, *numbers, found.patients])
        place += 1
    axes.axvline(0, color="grey", linestyle=":", linewidth=1.0)
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize="x-small")
    axes.set(ylim=(place, -1))
    axes.set_xlabel("difference of Dice", fontsize="small")
    return Picture(name, title, figure, ("comparison", "domain", "difference", "low", "high", "patients"), lines)


def draw_losses(row: str, phases: Mapping[str, Band]) -> Picture:
    """Losses over the steps of each phase: the median of the seeds, and a band from the lowest to the highest.

    Args:
        row: its name.
        phases: by phase and loss; at least one.
    """
    across = min(3, len(phases))
    figure = figures.new_figure(2.6 * across + 0.4, 1.9 * math.ceil(len(phases) / across))
    panels = figure.subplots(math.ceil(len(phases) / across), across, squeeze=False).flat
    lines: list[list[object]] = []
    for axes, (name, (steps, values)) in zip(panels, phases.items(), strict=False):
        axes.plot(steps, np.median(values, axis=0), color=UP, linewidth=1)
        if len(values) > 1:
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=UP, alpha=0.25, linewidth=0)
        axes.set_title(name, fontsize="x-small")
        axes.tick_params(labelsize="x-small")
        for number, of_seed in enumerate(values.tolist()):
            lines += [[name, number, step, value] for step, value in zip(steps.tolist(), of_seed, strict=True)]
    for axes in [*panels]:
        axes.axis("off")
    many = max(len(values) for _, values in phases.values())
    title = f"{row}: losses over the steps of each phase" + (f", {many} seeds" if many > 1 else "")
    name = "losses-" + "".join(sign if sign.isalnum() or sign in "._" else "-" for sign in row).strip("-")
    return Picture(name, title, figure, ("phase", "seed's place", "step", "value"), lines)


def draw_seconds(rows: Mapping[str, Mapping[str, float]]) -> Picture:
    """Seconds of training by stage, means over seeds: a bar a row, parted by stage."""
    figure = figures.new_figure(6.4, 1.2 + 0.3 * len(rows))
    axes = figure.add_subplot()
    stages = sorted({stage for known in rows.values() for stage in known})
    ends = np.zeros(len(rows))
    for number, stage in enumerate(stages):
        width = np.array([known.get(stage, 0.0) for known in rows.values()])
        axes.barh([*rows], width, left=ends, color=COLOURS[number % len(COLOURS)], label=stage)
        ends = ends + width
    axes.invert_yaxis()
    axes.tick_params(labelsize="x-small")
    axes.set_xlabel("seconds", fontsize="small")
    figure.legend(loc="outside upper center", ncols=4, fontsize="x-small")
    lines = [[row, stage, second] for row, known in rows.items() for stage, second in known.items()]
    return Picture("seconds", "Seconds of training by stage", figure, ("row", "stage", "seconds"), lines)


def draw_scatter(
    name: str, title: str, labels: tuple[str, str], groups: Mapping[str, Array], *, diagonal: bool
) -> Picture:
    """(N, 2) points of each group; ``diagonal`` draws the line on which both numbers are equal."""
    figure = figures.new_figure(4.2, 3.4)
    axes = figure.add_subplot()
    for number, (group, points) in enumerate(groups.items()):
        marker = figures.MARKERS[number % len(figures.MARKERS)]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(points[:, 0], points[:, 1], marker, color=colour, markersize=5, alpha=0.8, label=group)
    if diagonal:
        axes.axline((0, 0), slope=1, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel(labels[0], fontsize="small")
    axes.set_ylabel(labels[1], fontsize="small")
    if len(groups) > 1:
        figure.legend(loc="outside upper center", ncols=3, fontsize="x-small")
    lines = [[group, *point] for group, points in groups.items() for point in points.tolist()]
    return Picture(name, title, figure, ("group", *labels), lines)
