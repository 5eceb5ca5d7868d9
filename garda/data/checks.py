"""What is read and found good before anything is learnt, and who may see which scan."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from garda.core.console import Console
from garda.core.errors import DataError, GardaError, raise_all
from garda.data import dicom, scan, volume
from garda.data.manifest import Case
from garda.data.scan import ScanFile
from garda.data.sequence import Domain, DomainSequence, find_gaps
from garda.data.task import Task


def check(
    sequence: DomainSequence, data: Path, cases: Sequence[Case], console: Console, target_labels: bool = False
) -> None:
    """Read every given case.

    Args:
        sequence: the domains.
        data: the folder that manifest paths are relative to.
        cases: what is read.
        console: tells the user.
        target_labels: whether targets need labels too, for an oracle that reads them.

    Raises:
        GardaError: everything that is wrong, at once.
    """
    problems: list[GardaError] = find_gaps(sequence, target_labels)
    if not os.access(data, os.R_OK | os.X_OK):
        raise_all([*problems, DataError(data, "no folder that can be read", "give the scans' folder under --data")])
    problems += check_cases(cases, sequence.task, data, console)
    training = [case for case in sequence.source.split("train") if case in cases]
    labels = (volume.read_volume(case, sequence.task, data, with_label=True).label for case in training)
    if not problems and training and not any(label is not None and label.any() for label in labels):
        problems.append(DataError(sequence.source.name, "no training label marks anything", "give labels with a class"))
    raise_all(problems)
    if not any(labelled_cases(domain) for domain in sequence.domains):
        console.line("no domain has a labelled test scan: nothing will be scored")


def check_cases(cases: Sequence[Case], task: Task, data: Path, console: Console) -> list[GardaError]:
    """What is wrong with any of the cases' files, after all have been read.

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
        found = volume.check_case(case, task, data)
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
