"""Manifests from folders of scans: images and their labels, splits by patient, digests of every file."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from garda.core.errors import DataError
from garda.core.seeds import derive_seed
from garda.data import layouts, readers
from garda.data.layouts import Layout, Scan
from garda.data.manifest import SEVERAL, SPLITS, Case, Split
from garda.data.scan import cannot_read


def build_manifest(
    folder: Path,
    data: Path,
    *,
    layout: Layout | Literal["auto"] = "auto",
    fractions: Sequence[float] = (0.6, 0.1, 0.3),
    seed: int = 0,
    patient_pattern: str | None = None,
    image_suffix: str = "",
    label_suffixes: Sequence[str] = (),
) -> tuple[Case, ...]:
    """Find one domain's scans and labels.

    Layouts:
        pairs: ``images/`` with ``labels/``, ``masks/`` or ``annotations/``, files of one name, subfolders alike.
        nnunet: ``imagesTr/`` with ``labelsTr/``, and ``imagesTs/`` with ``labelsTs/`` if there is one; images are
            ``<case>_0000``, labels ``<case>``. Patients of ``imagesTs`` get the split test.
        bids: ``sub-*/`` with labels below ``derivatives/``; the patient is ``sub-*``.
    A folder with DICOM files is one image, and so is each folder with DICOM files in a zipped study. A scan without a
    label gets an empty one.

    Args:
        folder: the domain's folder, below ``data``.
        data: the folder that the manifest's paths are relative to.
        layout: ``auto`` looks for the folders above.
        fractions: shares of the patients in train, val and test.
        seed: decides which patient gets which split; the order of files does not.
        patient_pattern: regular expression with one group, searched in an image's path relative to ``data``; the
            group is the patient. None: the layout's patient, else every scan is its own.
        image_suffix: only images whose name ends so are taken, such as ``_T2w``.
        label_suffixes: what a label's name adds to its image's, one for each mask in the task's order, such as
            ``_seg`` and ``_gmseg``. Empty: the same name, or the only one that goes on after the image's. In BIDS, a
            suffix may also replace the last part of the image's name, as ``_dseg`` does.

    Returns:
        cases in the order of their paths, with SHA-256 and bytes of every file.

    Raises:
        DataError: no image is found, two have one name, a label is ambiguous, one of several masks is missing, nnU-Net
            files hold one channel each of several, a patient is not found in a path, a file or folder cannot be read,
            or an argument does not fit.
    """
    root = data.resolve()
    try:
        if not folder.is_dir():
            raise DataError(folder, "no such folder", "check the path")
        if not folder.resolve().is_relative_to(root):
            raise DataError(folder, f"is not below the data folder {data}", "give a --data folder that holds it")
        layout = layouts.recognise_layout(folder) if layout == "auto" else layout
        scans = layouts.find_scans(folder.resolve(), layout, image_suffix, label_suffixes)
    except OSError as error:
        raise DataError(error.filename or folder, *cannot_read(error)) from None
    patients = [_patient(scan.image.relative_to(root), patient_pattern) or scan.patient or scan.key for scan in scans]
    return make_cases(scans, patients, root, fractions, seed)


def make_cases(
    scans: Sequence[Scan],
    patients: Sequence[str],
    root: Path,
    fractions: Sequence[float] = (0.6, 0.1, 0.3),
    seed: int = 0,
) -> tuple[Case, ...]:
    """Manifest rows of scans below ``root``, ``patients`` saying whose each is; errors as :func:`build_manifest`."""
    tested = {patient for scan, patient in zip(scans, patients, strict=True) if scan.test}
    splits = split_patients(set(patients) - tested, fractions, seed) | dict.fromkeys(tested, SPLITS[-1])
    return tuple(
        _case(scan.key, patient, splits[patient], [file.relative_to(root) for file in (scan.image, *scan.labels)], root)
        for scan, patient in zip(scans, patients, strict=True)
    )


def split_patients(patients: Iterable[str], fractions: Sequence[float], seed: int) -> dict[str, Split]:
    """Give every patient a split.

    Seed and name alone put the patients in order, then the order is cut: a patient who joins later moves no one but
    those beside the cuts.

    >>> splits = split_patients(["anna", "ben", "cleo", "dora"], (0.5, 0, 0.5), seed=0)
    >>> sorted(splits.values())
    ['test', 'test', 'train', 'train']
    >>> split_patients(["dora", "cleo", "ben", "anna"], (0.5, 0, 0.5), seed=0) == splits
    True

    Args:
        patients: names; a name that comes again changes nothing.
        fractions: shares of train, val and test; a share of less than half a patient is empty.
        seed: another one, another order.

    Raises:
        DataError: the fractions are not three, negative, or do not sum to 1.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        what = f"expected three shares that sum to 1, got {', '.join(f'{fraction:g}' for fraction in fractions)}"
        raise DataError("fractions", what, "give for example 0.6 0.1 0.3")
    ordered = sorted(set(patients), key=lambda patient: (derive_seed(seed, "split", patient), patient))
    cuts = [round(len(ordered) * sum(fractions[:count])) for count in range(len(SPLITS) + 1)]
    parts = zip(SPLITS, cuts[:-1], cuts[1:], strict=True)
    return {patient: split for split, start, stop in parts for patient in ordered[start:stop]}


def _patient(image: Path, pattern: str | None) -> str | None:
    """What the group of ``pattern`` finds in the relative path ``image``; None without a pattern."""
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError("patient pattern", f"{pattern!r} is no regular expression ({error})", "mend it") from None
    if compiled.groups != 1:
        remedy = "put the part that names the patient in parentheses"
        raise DataError("patient pattern", f"{pattern!r} has {compiled.groups} groups, expected one", remedy)
    found = compiled.search(image.as_posix())
    if found is None or not found[1]:
        raise DataError(image, f"the patient pattern {pattern!r} finds nothing in the path", "widen the pattern")
    return found[1]


def _case(key: str, patient: str, split: Split, files: Sequence[Path], data: Path) -> Case:
    """A manifest row; ``files`` are the image and its labels, relative to ``data``."""
    image, *labels = (file.as_posix() for file in files)
    for name in (image, *labels):
        if SEVERAL in name:
            raise DataError(name, f"has a {SEVERAL!r} in its path", "rename it, the manifest separates files by it")
        if name != name.strip():
            raise DataError(repr(name), "begins or ends with a space", "rename it, a manifest drops such spaces")
    digests = tuple((name, *readers.digest(data / name)) for name in (image, *labels))
    return Case(key.replace("/", "_"), patient, split, image, tuple(labels), digests, image)
