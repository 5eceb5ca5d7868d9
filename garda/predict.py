"""Segment new images with what a run has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from garda.cases import Case
from garda.config import merge, parse
from garda.errors import ConfigError, DataError, RunFolderError, raise_all
from garda.methods import build_method, parse_settings
from garda.plan import Plan, read_plan
from garda.report import Reporter
from garda.segmenter import segment
from garda.task import Task
from garda.volumes import check_case, prediction_name, read_volume, write_label_map

OTHER = "other"  # a domain that no sequence names


def predict(
    run: Path,
    images: Sequence[Path],
    out: Path,
    reporter: Reporter,
    stage: int | None = None,
    domain: str | None = None,
) -> list[Path]:
    """Write a label map for each image, in the image's own space.

    Args:
        run: a run folder.
        images: image files, or folders with one DICOM series each.
        out: where the label maps go.
        reporter: tells the user.
        stage: the stage whose segmenter is used; None for the last one learnt.
        domain: the domain that the images come from; None for the stage's own, ``other`` for one that is not in the
            run's sequence. It decides something for methods that keep parameters for each domain.

    Returns:
        the files written, in the order of ``images``.

    Raises:
        RunFolderError: the run has no such stage, or has not learnt it yet.
        ConfigError: the run's sequence has no such domain.
        GardaError: images cannot be read, a label map exists already, or two would have one name; nothing has been
            written.
    """
    _check_exist(images)
    targets = _name_outputs(images, out)
    plan = read_plan(run)
    task = parse(Task, plan.task, run / "plan.json")
    changes = {"compute": {"accelerator": "auto"}}  # the machine need not be the one that learnt
    settings = parse_settings(plan.method, merge(plan.settings, changes), run / "plan.json")
    method = build_method(plan.method, settings, task)
    knowledge = method.load(_find_stage(run, plan, stage))
    known = [planned.name for planned in plan.domains]
    if domain not in (None, OTHER, *known):
        raise ConfigError("--domain", f"the run knows no {domain!r}", f"use one of {', '.join([*known, OTHER])}")
    domain = domain or knowledge.domains[-1]
    network = method.compute.prepare(method.network(knowledge, domain)).eval()
    cases = [Case(image.name, "", "test", str(image.absolute()), (), (), str(image)) for image in images]
    problems = [problem for case in cases for problem in check_case(case, task, Path())]
    raise_all(problems)
    progress = reporter.bar("predict")
    for index, (case, target) in enumerate(zip(cases, targets, strict=True)):
        volume = read_volume(case, task, Path(), with_label=False)
        label_map = segment(network, method.standardise(knowledge, volume, domain), task, method.compute)
        write_label_map(label_map, volume, target)
        progress(index + 1, len(images))
    return targets


def _check_exist(images: Sequence[Path]) -> None:
    raise_all([DataError(image, "does not exist", "check the path") for image in images if not image.exists()])


def _name_outputs(images: Sequence[Path], out: Path) -> list[Path]:
    targets = [out / prediction_name(image) for image in images]
    for index, target in enumerate(targets):
        if target in targets[:index]:
            raise DataError(images[index], f"would be written to {target}, as another image", "predict them apart")
        if target.exists():
            raise DataError(target, "exists already", "give another --out folder, or remove it")
    return targets


def _find_stage(run: Path, plan: Plan, stage: int | None) -> Path:
    """The knowledge folder of a stage, or of the last one learnt."""
    names = [domain.name for domain in plan.domains]
    folders = [run / "stages" / f"{index}-{name}" / "knowledge" for index, name in enumerate(names)]
    learnt = [folder for folder in folders if folder.exists()]
    if stage is None and learnt:
        return learnt[-1]
    if stage is not None and not 0 <= stage < len(folders):
        raise RunFolderError(run, f"has no stage {stage}", f"its stages are 0 to {len(folders) - 1}")
    if stage is not None and folders[stage].exists():
        return folders[stage]
    wanted = "a stage" if stage is None else f"stage {stage}"
    raise RunFolderError(run, f"{wanted} has not been learnt yet", f"{len(learnt)} of {len(folders)} have; go on first")
