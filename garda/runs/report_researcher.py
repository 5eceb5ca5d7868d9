"""The page for a researcher: everything of a run or a comparison that numbers can say; no image."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from garda import __version__
from garda.core import config, files
from garda.core.errors import RunFolderError
from garda.data.task import Task
from garda.evaluation import measures, page, report_figures, tables
from garda.evaluation.measures import Comparison, Row
from garda.evaluation.page import Picture
from garda.evaluation.report_figures import Band
from garda.evaluation.tables import Wide
from garda.handover import settings, setup
from garda.handover.settings import check_method
from garda.runs import compare, compare_plan
from garda.runs.journal import JOURNAL

POINTS = 200  # of a loss that are drawn


def write_page(source: Path, out: Path) -> None:
    """Write the page of a run or a comparison, and its pictures and tables into a folder beside it.

    Raises:
        RunFolderError: nothing is finished, a file is damaged, or cannot be written.
    """
    name, comparison, folders = _read(source)
    numbers = measures.measure(comparison)
    sections: list[tuple[str, list[Picture]]] = [
        ("What was learnt, kept and lost", [report_figures.draw_matrices(comparison)]),
        ("Patients before and after", [report_figures.draw_slopes(comparison, row) for row in comparison.rows]),
    ]
    shown = [*zip(("dice", "numbers", "costs"), tables.row_tables(comparison, numbers), strict=True)]
    if found := measures.differences(comparison, numbers):
        sections.append(("Paired differences", [report_figures.draw_differences(comparison, found)]))
        shown.append(("differences", tables.difference_table(comparison, found)))
    else:
        sections.append(("Gains", [report_figures.draw_gains(comparison, comparison.rows[0])]))
    curves = [report_figures.draw_curves(comparison)]
    for row in comparison.rows:
        if phases := _losses(folders[row.name]):
            curves.append(report_figures.draw_losses(row.name, phases))
    sections.append(("Curves", curves))
    if seconds := {row: known for row, paths in folders.items() if (known := _seconds(paths))}:
        sections.append(("Time", [report_figures.draw_seconds(seconds)]))
    shown.append(("settings", _changed_settings(folders)))
    text = page.render(
        "researcher.html",
        version=__version__,
        name=name,
        comparison=comparison,
        folder=out.stem,
        sections=sections,
        tables=shown,
    )
    page.write_beside(out.with_suffix(""), [picture for _, drawn in sections for picture in drawn], shown)
    page.write(out, text)


def _read(source: Path) -> tuple[str, Comparison, dict[str, list[Path]]]:
    """Name, rows, and each row's run folders."""
    if (source / "comparison.json").exists():
        common = compare_plan.read_common(source)
        comparison = compare.gather(source, common)
        if not comparison.rows:
            raise RunFolderError(source, "no run of it is finished", "go on with the comparison first")
        folders = {
            row.name: [compare_plan.run_folder(source, row.method, row.label, seed) for seed in row.runs]
            for row in comparison.rows
        }
        return common.name, comparison, folders
    plan = setup.read_plan(source)
    check_method(plan.method, source / "plan.json")
    finished, task = compare_plan.read_run(source, plan), config.parse(Task, plan.task, source / "plan.json")
    if finished is None:
        raise RunFolderError(source, "has no score after its last stage", "go on with the run first")
    row = Row(plan.method, "", {plan.seed: finished})
    domains = tuple(domain.name for domain in plan.domains)
    comparison = Comparison(domains, task.classes[1:], task.same_patient_in_splits, (row,))
    return plan.name, comparison, {row.name: [source]}


def _losses(folders: Sequence[Path]) -> dict[str, Band]:
    """Losses by phase, a line a seed, at the steps that all seeds have; the last of several tellings counts."""
    found: dict[str, list[dict[int, float]]] = defaultdict(list)
    for folder in folders:
        own: dict[str, dict[int, float]] = defaultdict(dict)
        for line in (folder / JOURNAL).read_text("utf-8").splitlines() if (folder / JOURNAL).exists() else ():
            for name, step, value in _told(line):
                own[name][step] = value
        for name, values in own.items():
            found[name].append(values)
    bands = {}
    for name, seeds in found.items():
        steps = sorted(set.intersection(*({*values} for values in seeds)))
        steps = steps[:: max(1, len(steps) // POINTS)]
        if len(steps) > 1:
            bands[name] = np.array(steps), np.array([[values[step] for step in steps] for values in seeds])
    return bands


def _told(line: str) -> list[tuple[str, int, float]]:
    """Phase and loss, step and value; nothing of another event, or of a line that was torn."""
    try:
        event = json.loads(line)
        values = event["values"] if event["kind"] == "losses" else {"values": {}}
        where = [values.get("stage", ""), values.get("part", "")]
        return [(" ".join([*where, name]), values["step"], value) for name, value in values["values"].items()]
    except (ValueError, KeyError, TypeError):
        return []


def _seconds(folders: Sequence[Path]) -> dict[str, float]:
    """Seconds by stage, mean over seeds."""
    found: dict[str, float] = defaultdict(float)
    for file in (folder / "seconds.json" for folder in folders if (folder / "seconds.json").exists()):
        for phase, value in files.read_json(file).items():
            found[phase.rpartition("-")[0]] += float(value) / len(folders)
    return dict(found)


def _changed_settings(folders: dict[str, list[Path]]) -> Wide:
    """Every setting that is not what it is without a configuration."""
    rows: list[tuple[str, ...]] = []
    for name, paths in folders.items():
        plan = setup.read_plan(paths[0])
        default = settings.deciding_settings(plan.method, settings.parse_settings(plan.method, {}, paths[0]))
        rows += [
            (name, key, *map(json.dumps, pair)) for key, pair in sorted(_differing(default, plan.settings).items())
        ]
    return Wide("Settings that are not the default", None, ("row", "setting", "default", "here"), rows, words=4)


def _differing(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Both values under each dotted key where two trees of plain values differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {key: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in {*old, *new}:
        found |= _differing(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    return found
