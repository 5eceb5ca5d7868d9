"""Segment new images with what a run has learnt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from garda.cases import Case
from garda.errors import ConfigError, DataError, raise_all
from garda.handover.learnt import load_package
from garda.handover.package import opened
from garda.handover.signing import Trusted
from garda.handover.verify import verify
from garda.report import Reporter
from garda.segmenter import segment
from garda.volumes import check_case, prediction_name, read_volume, write_label_map

OTHER = "other"  # a domain that has not been met


def predict(
    source: Path,
    images: Sequence[Path],
    out: Path,
    reporter: Reporter,
    stage: int | None = None,
    domain: str | None = None,
    trusted: Collection[Trusted] = (),
) -> list[Path]:
    """Write a label map for each image, in the image's own space.

    Args:
        source: a package, as a folder or a zip file, or a run folder.
        images: image files, or folders with one DICOM series each.
        out: where the label maps go.
        reporter: tells the user.
        stage: of a run folder, the stage whose segmenter is used; None for the last one learnt.
        trusted: whose signatures count, see :func:`garda.handover.signing.check_signatures`.
        domain: the domain that the images come from; None for the last one met, ``other`` for one that has not been
            met. It decides something for methods that keep parameters for each domain.

    Returns:
        the files written, in the order of ``images``.

    Raises:
        RunFolderError: the run has no such stage, or has not learnt it yet.
        PackageError: there is no package, or it is damaged.
        ConfigError: no such domain has been met.
        GardaError: images cannot be read, a label map exists already, or two would have one name; nothing has been
            written.
    """
    _check_exist(images)
    targets = _name_outputs(images, out)
    with opened(source, stage) as folder:
        verify(folder, trusted)
        learnt = load_package(folder)
    method, knowledge = learnt.method, learnt.knowledge
    if domain not in (None, OTHER, *knowledge.domains):
        known = ", ".join([*knowledge.domains, OTHER])
        raise ConfigError("--domain", f"{domain!r} has not been met", f"use one of {known}")
    domain = domain or knowledge.domains[-1]
    network = method.compute.prepare(method.network(knowledge, domain)).eval()
    cases = [Case(image.name, "", "test", str(image.absolute()), (), (), str(image)) for image in images]
    problems = [problem for case in cases for problem in check_case(case, method.task, Path())]
    raise_all(problems)
    progress = reporter.bar("predict")
    for index, (case, target) in enumerate(zip(cases, targets, strict=True)):
        volume = read_volume(case, method.task, Path(), with_label=False)
        label_map = segment(network, method.standardise(knowledge, volume, domain), method.task, method.compute)
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
