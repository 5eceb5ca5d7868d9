"""Several methods over one sequence, with several seeds, and one table of all that has been finished.

    OUT/comparison.json                     what all runs have in common
    OUT/runs/<method>[-<label>]/seed-<n>    a run folder each
    OUT/shelf, OUT/mlflow.db                what the runs share
    OUT/table.csv, comparison.csv, differences.csv, matrices.png, curves.png, choice.csv

The tables are made from every finished run in the folder, whichever call of the command made it.
"""

from __future__ import annotations

from garda.core import files
from garda.core.console import Console
from garda.core.errors import GardaError, TrainingError, raise_all
from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.data.task import Task
from garda.evaluation import figures
from garda.evaluation.measures import Comparison, differences, measure
from garda.evaluation.tables import (
    Wide,
    difference_table,
    rich_table,
    row_tables,
    write_differences,
    write_measures,
    write_wide,
)
from garda.runs import compare_plan, compare_rows, mlflow
from garda.runs.choices import choice_table, cost_table, find_choices
from garda.runs.compare_plan import Planned, Request
from garda.runs.compare_rows import Common
from garda.runs.context import Run
from garda.runs.run import run_sequence


def compare(request: Request, console: Console, stopping: Stopping, pseudonyms: Pseudonyms) -> None:
    """Run what is asked for and not finished, then show the tables of everything that is.

    A run whose training fails is told at the end, and the others go on.

    Raises:
        TrainingError: a run has failed; several are :class:`~garda.core.errors.Problems`.
        GardaError: nothing is trained before settings, folders and manifests of every run have been found good.
    """
    common, planned = compare_plan.plan_runs(request, pseudonyms)
    files.write_json(request.out / "comparison.json", common.model_dump(mode="json"))
    failed: list[GardaError] = []
    for run in planned:
        if run.finished:
            console.line(f"{run.name}: finished before")
            continue
        write_tables(request, gather(request, common, run.sequence.task))  # whatever ends this run, they are there
        console.line(f"{run.name}:")
        try:
            run_sequence(_open(request, run, console, stopping, pseudonyms))
        except TrainingError as error:
            failed.append(TrainingError(f"{run.name}, {error.where}", error.what, error.remedy))
    comparison = gather(request, common, planned[0].sequence.task)
    for table in write_tables(request, comparison):
        console.show(rich_table(table))
    if comparison.rows:
        figures.draw_matrices(request.out / "matrices.png", comparison)
        figures.draw_curves(request.out / "curves.png", comparison)
        console.line(f"every number, and pictures: {request.out}")
    raise_all(failed)


def gather(request: Request, common: Common, task: Task) -> Comparison:
    """Every row that is finished in the comparison's folder; errors as in :func:`find_rows`."""
    domains = tuple(domain.name for domain in common.domains)
    return Comparison(
        domains, task.classes[1:], task.same_patient_in_splits, tuple(compare_rows.find_rows(request.out, common))
    )


def write_tables(request: Request, comparison: Comparison) -> list[Wide]:
    """Write the CSV files.

    Returns:
        the tables as they are shown; none where nothing is finished.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    if not comparison.rows:
        return []
    measures = measure(comparison)
    found = differences(comparison, measures, request.against)
    tables = row_tables(comparison, measures)
    write_wide(request.out / "table.csv", tables)
    write_measures(request.out / "comparison.csv", comparison, measures)
    write_differences(request.out / "differences.csv", comparison, found)
    shown = [*tables, difference_table(comparison, found)] if found else tables
    choices = find_choices(request.out, comparison.rows)
    if not choices:
        return shown
    write_wide(request.out / "choice.csv", [choice_table(choices)])
    return [*shown, choice_table(choices), cost_table(choices)]


def _open(request: Request, run: Planned, console: Console, stopping: Stopping, pseudonyms: Pseudonyms) -> Run:
    """The run with the tracker and the shelf that all runs of the comparison share."""
    tracker = mlflow.open_tracker(run.folder, console.line, request.out, run.label)
    return Run(
        run.sequence,
        request.data,
        run.folder,
        tracker,
        console,
        stopping,
        pseudonyms,
        cache=request.out / "shelf",
        judging=request.judging,
        gated=False,
    )
