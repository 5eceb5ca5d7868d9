"""What is read and found good before anything is learnt, and who may see which scan."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from garda.core.console import Console
from garda.core.errors import DataError, GardaError, raise_all
from garda.data import dicom, readers, scan
from garda.data.manifest import Case
from garda.data.readers import Recorded
from garda.data.scan import ScanFile
from garda.data.sequence import Domain, DomainSequence, find_gaps
from garda.data.task import Task
from garda.data.volume import Volume, read_volume

Seen = Callable[[Case, Volume], None]  # is given every case that can be read


def check(
    sequence: DomainSequence, data: Path, cases: Sequence[Case], console: Console, target_labels: bool = False
) -> None:
    """Read every given case, see :func:`find_problems`.

    Raises:
        GardaError: everything that is wrong, at once.
    """
    raise_all(find_problems(sequence, data, cases, console, target_labels))


def find_problems(
    sequence: DomainSequence,
    data: Path,
    cases: Sequence[Case],
    console: Console,
    target_labels: bool = False,
    seen: Seen | None = None,
) -> list[GardaError]:
    """Everything that is wrong with the given cases.

    Args:
        sequence: the domains.
        data: the folder that manifest paths are relative to.
        cases: what is read.
        console: tells the user.
        target_labels: whether targets need labels too, for an oracle that reads them.
        seen: is given every case that can be read.
    """
    problems: list[GardaError] = find_gaps(sequence, target_labels)
    if not os.access(data, os.R_OK | os.X_OK):
        return [*problems, DataError(data, "no folder that can be read", "give the scans' folder under --data")]
    training = {case.where for case in sequence.source.split("train")}
    marked: set[bool] = set()

    def look(case: Case, volume: Volume) -> None:
        if case.where in training:
            marked.add(volume.label is not None and bool(volume.label.any()))
        if seen is not None:
            seen(case, volume)

    problems += check_cases(cases, sequence.task, data, console, look)
    if not problems and marked == {False}:
        problems.append(DataError(sequence.source.name, "no training label marks anything", "give labels with a class"))
    if not problems and not any(labelled_cases(domain) for domain in sequence.domains):
        console.line("no domain has a labelled test scan: nothing will be scored")
    return problems


def check_cases(
    cases: Sequence[Case], task: Task, data: Path, console: Console, seen: Seen | None = None
) -> list[GardaError]:
    """What is wrong with any of the cases' files, after all have been read; ``seen`` is given those that can be read.

    Also tells, once, of DICOM series whose headers do not say that the patient's identity was removed. garda keeps
    nothing of a header, but what is burnt into the pixels is in what it learns from. Where several scans are asked
    for and none is there, ``data`` is most likely another folder than the manifests mean, and one line says so.
    """
    files = [data / case.image for case in cases]
    if len(files) > 1 and not any((scan.split_archive(file) or (file,))[0].exists() for file in files):
        what = f"holds none of the {len(files)} scans, such as {cases[0].image}"
        return [DataError(data, what, "give the folder that the manifests' paths are relative to")]
    problems: list[GardaError] = []
    identified, progress = 0, console.bar("check")
    for index, case in enumerate(cases):
        found = check_case(case, task, data, seen)
        file = ScanFile(data / case.image, f"image {case.image}", case.where)
        if not found and dicom.is_dicom(file.path):
            with dicom.series(file) as series:
                identified += not series.identity_removed
        problems += found
        progress(index + 1, len(cases))
    if identified:
        console.line(
            f"warning: {identified} of {len(cases)} scans are DICOM without PatientIdentityRemoved=YES: look whether "
            "names are burnt into the pixels; headers are not kept"
        )
    return problems


def check_case(case: Case, task: Task, data: Path, seen: Seen | None = None) -> list[GardaError]:
    """What is wrong with a case's files: each that cannot be read or differs from its digest, then the first misfit.

    Args:
        case: the manifest row.
        task: what the files must fit.
        data: the folder that the case's paths are relative to.
        seen: is given the case where it can be read.
    """
    recorded = {name: (sha, size) for name, sha, size in case.digests}
    names = [(case.image, "image"), *((name, "label") for name in case.labels)]
    changed = "is not the file that the manifest was made for (its SHA-256 or size differs)"
    problems: list[GardaError] = []
    readable = True
    for name, kind in names:
        file = ScanFile(data / name, f"{kind} {name}", case.where)
        try:
            if _is_changed(file, recorded.get(name)):
                problems.append(file.error(changed, "restore the file, or make the manifest again"))
        except DataError as error:
            problems.append(error)
            readable = False
    try:
        found = read_volume(case, task, data, with_label=True) if readable else None
    except GardaError as error:
        return [*problems, error]
    if found is not None and seen is not None:
        seen(case, found)
    return problems


def read_unchanged(case: Case, task: Task, data: Path, *, with_label: bool) -> Volume:
    """As :func:`garda.data.volume.read_volume`; its files are held against the manifest after they were read.

    Raises:
        DataError: as there, or a file is not the recorded one any more.
    """
    found = read_volume(case, task, data, with_label=with_label)
    kinds = {case.image: "image"} | (dict.fromkeys(case.labels, "label") if with_label else {})
    for name, sha, size in case.digests:
        file = ScanFile(data / name, f"{kinds.get(name)} {name}", case.where)
        if name in kinds and _is_changed(file, (sha, size)):
            raise file.error("has changed since the run began", "restore the file and run the same command again")
    return found


def _is_changed(file: ScanFile, recorded: Recorded | None) -> bool:
    file.require()
    try:
        return recorded is not None and readers.digest(file.path) != recorded
    except DataError as error:
        raise file.error(error.what, error.remedy) from None


def needed_cases(sequence: DomainSequence, to_read: Sequence[Domain], target_labels: bool = False) -> list[Case]:
    """What a run reads: training scans for the stages to come, without a target's labels, what of the source is held
    out, and labelled test scans.

    Args:
        sequence: the run's domains.
        to_read: the domains whose training scans are read.
        target_labels: whether the method is an oracle that reads the targets' labels.
    """
    train = [(domain.index == 0 or target_labels, case) for domain in to_read for case in domain.split("train")]
    held_out = (domain.split("val") for domain in to_read if domain.index == 0)
    train += [(True, case) for cases in held_out for case in cases if case.labels]
    read = [case if labelled else without_label(case) for labelled, case in train]
    return read + [case for domain in sequence.domains for case in labelled_cases(domain)]


def labelled_cases(domain: Domain) -> list[Case]:
    """The test cases that can be scored."""
    return [case for case in domain.split("test") if case.labels]


def without_label(case: Case) -> Case:
    """The case as a method sees a target's: with nothing that leads to a label.

    >>> case = Case("c", "p", "train", "i.nii", ("l.nii",), (("i.nii", "ab", 1), ("l.nii", "cd", 1)), "m.csv:2")
    >>> without_label(case).labels, without_label(case).digests
    ((), (('i.nii', 'ab', 1),))
    """
    return replace(case, labels=(), digests=tuple(digest for digest in case.digests if digest[0] == case.image))
