"""Several methods over one sequence, with several seeds, and one table of all that has been finished.

    OUT/comparison.json                     what all runs have in common
    OUT/runs/<method>[-<label>]/seed-<n>    a run folder each
    OUT/shelf, OUT/mlflow.db                the cache and the tracking store that the runs share
    OUT/table.csv, comparison.csv, differences.csv, matrices.png, curves.png, choice.csv

The tables are made from every finished run in the folder, whichever call of the command made it.
"""

from pathlib import Path

from garda.core import config, files
from garda.core.console import Console
from garda.core.errors import GardaError, TrainingError, Undelivered, raise_all
from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.data.task import Task
from garda.evaluation import figures, measures, tables
from garda.evaluation.measures import Comparison
from garda.evaluation.tables import Wide
from garda.runs import choices, compare_plan, mlflow, run
from garda.runs.compare_plan import Common, Planned, Request
from garda.runs.context import Run


def compare(request: Request, console: Console, stopping: Stopping, pseudonyms: Pseudonyms) -> None:
    """Run what is asked for and not finished, then show the tables of everything that is.

    A run whose training fails is told at the end, and the others go on.

    Raises:
        Undelivered: all have finished, and metrics have not reached their store.
        TrainingError: a run has failed; several are :class:`~garda.core.errors.Problems`.
        GardaError: nothing is trained before settings, folders and manifests of every run have been found good.
    """
    common, asked = compare_plan.plan_runs(request, pseudonyms)
    files.write_json(request.out / "comparison.json", common.model_dump(mode="json"))
    failed, late = list[GardaError](), None
    for planned in asked:
        console.line(f"{planned.name}:{' finished before' * planned.finished}")
        opened = _open(request, planned, console, stopping, pseudonyms)
        try:
            if planned.finished:
                opened.tracker.catch_up()
            else:
                write_tables(request, gather(request.out, common))  # whatever ends this run, they are there
                run.run_sequence(opened)
            opened.tracker.check_delivered()
        except TrainingError as error:
            failed.append(TrainingError(f"{planned.name}, {error.where}", error.what, error.remedy))
        except Undelivered as error:
            late = Undelivered(f"{planned.name}, {error.where}", error.what, error.remedy)
    comparison = gather(request.out, common)
    for table in write_tables(request, comparison):
        console.show(tables.rich_table(table))
    if comparison.rows:
        figures.write_png(request.out / "matrices.png", figures.draw_matrices(comparison))
        figures.write_png(request.out / "curves.png", figures.draw_curves(comparison))
        console.line(f"every number, and pictures: {request.out}")
    raise_all(failed)
    if late is not None:
        raise late


def gather(out: Path, common: Common) -> Comparison:
    """Every row that is finished in the comparison's folder; errors as in :func:`compare_plan.find_rows`."""
    domains, task = tuple(domain.name for domain in common.domains), config.parse(Task, common.task, out)
    rows = compare_plan.find_rows(out, common)
    return Comparison(domains, task.classes[1:], task.same_patient_in_splits, tuple(rows))


def write_tables(request: Request, comparison: Comparison) -> list[Wide]:
    """Write the CSV files.

    Returns:
        the tables as they are shown; none where nothing is finished.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    if not comparison.rows:
        return []
    numbers = measures.measure(comparison)
    shown = tables.row_tables(comparison, numbers)
    tables.write_wide(request.out / "table.csv", shown)
    tables.write_measures(request.out / "comparison.csv", comparison, numbers)
    differences = measures.differences(comparison, numbers, request.against)
    tables.write_differences(request.out / "differences.csv", comparison, differences)
    if differences:
        shown.append(tables.difference_table(comparison, differences))
    if chosen := choices.find_choices(request.out, comparison.rows):
        shown += [choices.choice_table(chosen), choices.cost_table(chosen)]
        tables.write_wide(request.out / "choice.csv", shown[-2:-1])
    return shown


def _open(request: Request, planned: Planned, console: Console, stopping: Stopping, pseudonyms: Pseudonyms) -> Run:
    """The run with the tracker and the cache that all runs of the comparison share."""
    tracker = mlflow.open_tracker(planned.folder, console.line, request.out, planned.label)
    told, cache = (tracker, console, stopping, pseudonyms), request.out / "shelf"
    judging = request.judging
    return Run(planned.sequence, request.data, planned.folder, *told, cache=cache, judging=judging, gated=False)
