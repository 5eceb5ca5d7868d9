"""Manifests: one CSV a domain, a row a scan, read and checked, or written."""

from __future__ import annotations

import csv
import hashlib
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from garda.core.config import Config, load, load_yaml
from garda.core.errors import ConfigError, DataError, GardaError, raise_all
from garda.core.files import read_bytes, reason, replacing
from garda.data.task import Task

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REQUIRED_COLUMNS = ("case", "patient", "split", "image", "label")
OPTIONAL_COLUMNS = ("image_sha256", "image_bytes", "label_sha256", "label_bytes")
SEVERAL = ";"  # between the masks of one case, and between their digests


@dataclass(frozen=True)
class Case:
    """One manifest row. Paths are relative to the data folder.

    Attributes:
        case: the scan's name, unique in its domain.
        patient: whose scan it is. Known within its site only: ``001`` of two domains is two people.
        split: train, val or test.
        image: an image file, a folder with one DICOM series, or a zipped study; ``study.zip/T1`` is one folder of it.
        labels: one label map, or one mask a foreground class; empty where there is no label.
        digests: (relative path, SHA-256, bytes) of each file that the manifest records.
        where: manifest file and line, for messages.
        values: (code in the label file, class index), where the site's codes are its own; None for the task's.
    """

    case: str
    patient: str
    split: Split
    image: str
    labels: tuple[str, ...]
    digests: tuple[tuple[str, str, int], ...]
    where: str
    values: tuple[tuple[int, int], ...] | None = None


class SiteCodes(Config):
    """The contents of a ``<site>.yaml`` beside the site's manifest.

    Attributes:
        values: file value -> class index, in place of the task's ``label.values``.
    """

    values: dict[int, int]


def codes_file(path: Path) -> Path | None:
    """The ``<site>.yaml`` of a manifest, where there is one; other YAML files of the name have no ``values``."""
    file = path.with_suffix(".yaml")
    own = file.name != "task.yaml" and file.exists() and not {"classes", "manifests"} & {*load_yaml(file)}
    return file if own else None


def digest_manifest(path: Path) -> str:
    """SHA-256 of a manifest, and of its site's codes where it has some."""
    codes = codes_file(path)
    return hashlib.sha256(path.read_bytes() + (codes.read_bytes() if codes else b"")).hexdigest()


def read_codes(path: Path, task: Task) -> tuple[tuple[int, int], ...] | None:
    """A site's own label codes; None where it has none.

    Raises:
        ConfigError: the file does not say what it must.
    """
    file = codes_file(path)
    if file is None:
        return None
    values = load(SiteCodes, file).values
    if any(not 0 <= index < len(task.classes) for index in values.values()):
        raise ConfigError(file, f"values must map to class indices 0 to {len(task.classes) - 1}", "correct them")
    return tuple(values.items())


def read_manifest(path: Path, task: Task) -> tuple[Case, ...]:
    """Read one domain's CSV. Spaces around a cell do not count.

    Raises:
        DataError: the file is missing, no CSV or has other columns, a cell is empty or does not fit, a case or an image
            stands twice, a path leaves the data folder, or a patient stands in two splits without a reason in
            ``task.yaml``.
        Problems: several of these in its rows.
    """
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    cases: list[Case] = []
    problems: list[GardaError] = []
    try:
        _check_columns(path, reader)
        for row in reader:
            try:
                cases.append(_case(row, f"{path}:{reader.line_num}", task))
            except DataError as error:
                problems.append(error)
    except csv.Error as error:
        where = f"{path}:{reader.reader.line_num}"
        problems.append(DataError(where, f"is no CSV ({error})", "mend the quotes of the row"))
    problems += _find_repetitions(cases, task)
    if not cases and not problems:
        raise DataError(path, "holds no case", "add a row for each scan")
    raise_all(problems)
    codes = read_codes(path, task)
    return tuple(cases) if codes is None else tuple(replace(case, values=codes) for case in cases)


def read_names(path: Path) -> list[tuple[str, str]]:
    """Patient and case of every row; no other cell is looked at.

    Raises:
        DataError: the file is missing, no CSV or has other columns.
    """
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        _check_columns(path, reader)
        return [((row["patient"] or "").strip(), (row["case"] or "").strip()) for row in reader]
    except csv.Error as error:
        raise DataError(path, f"is no CSV ({error})", "mend its quotes") from None


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(path, "no such manifest", "write one with `garda manifest`") from None
    except UnicodeDecodeError:
        raise DataError(path, "cannot be read as UTF-8 text", "save the manifest as UTF-8 CSV") from None
    except OSError as error:
        raise DataError(path, f"cannot be read ({reason(error)})", "give a manifest that can be read") from None


def _check_columns(path: Path, reader: csv.DictReader[str]) -> None:
    columns = tuple(column.strip() for column in reader.fieldnames or ())
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    unknown = [column for column in columns if column not in REQUIRED_COLUMNS + OPTIONAL_COLUMNS]
    if missing or unknown:
        what = f"column {missing[0]!r} is missing" if missing else f"unknown column {unknown[0]!r}"
        raise DataError(path, what, f"the columns are {', '.join(REQUIRED_COLUMNS)}")
    reader.fieldnames = columns


def write_manifest(path: Path, cases: Sequence[Case]) -> None:
    """Write one domain's CSV, the counterpart of :func:`read_manifest`; digests only where a case has them.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    columns = REQUIRED_COLUMNS + (OPTIONAL_COLUMNS if any(case.digests for case in cases) else ())
    with replacing(path, private=True) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(_row(case) for case in cases)


def _row(case: Case) -> dict[str, str]:
    row = {"case": case.case, "patient": case.patient, "split": case.split}
    known = {file: (digest, str(size)) for file, digest, size in case.digests}
    for column, files in (("image", (case.image,)), ("label", case.labels)):
        row[column] = SEVERAL.join(files)
        for index, kind in enumerate(("sha256", "bytes")):
            row[f"{column}_{kind}"] = SEVERAL.join(known[file][index] for file in files if file in known)
    return row


def _case(row: dict[str, str], where: str, task: Task) -> Case:
    if None in row or None in row.values():
        raise DataError(where, "the row has another number of cells than the header", "quote cells that hold a comma")
    row = {column: cell.strip() for column, cell in row.items()}
    for column in ("case", "patient", "image"):
        if not row[column]:
            raise DataError(where, f"{column} is empty", "fill the cell")
    if row["split"] not in SPLITS:
        raise DataError(where, f"split is {row['split']!r}", f"use one of {', '.join(SPLITS)}")
    labels = tuple(part.strip() for part in row["label"].split(SEVERAL)) if row["label"] else ()
    wanted = len(task.label.masks) or 1
    if labels and len(labels) != wanted:
        raise DataError(where, f"{len(labels)} label files, the task wants {wanted}", f"separate them by {SEVERAL!r}")
    for file in (row["image"], *labels):
        if not file or "\0" in file or Path(file).is_absolute() or ".." in Path(file).parts:
            raise DataError(where, f"path {file!r} is not below the data folder", "give paths relative to --data")
    digests = tuple(_digests(row, labels, where))
    return Case(row["case"], row["patient"], row["split"], row["image"], labels, digests, where)


def _digests(row: dict[str, str], labels: tuple[str, ...], where: str) -> Iterator[tuple[str, str, int]]:
    for column, files in (("image", (row["image"],)), ("label", labels)):
        cells = (row.get(f"{column}_sha256", "").lower(), row.get(f"{column}_bytes", ""))
        digests, sizes = ([part.strip() for part in cell.split(SEVERAL) if part.strip()] for cell in cells)
        if not digests and not sizes:
            continue
        if not len(digests) == len(sizes) == len(files) or not all(size.isdecimal() for size in sizes):
            raise DataError(where, f"{column}_sha256 and {column}_bytes do not fit the files", "run `garda manifest`")
        yield from zip(files, digests, map(int, sizes), strict=True)


def normal_form(name: str) -> str:
    """How names of patients and cases are compared: composed (Unicode's NFC), and without regard to letter case.

    >>> normal_form("Jose\\u0301 ") == normal_form("JOS\\u00c9")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _find_repetitions(cases: Sequence[Case], task: Task) -> Iterator[DataError]:
    names: set[str] = set()
    images: dict[Path, str] = {}
    splits: dict[str, Split] = {}
    spelt: dict[tuple[str, str], str] = {}
    digests: dict[str, Case] = {}
    for case in cases:
        for kind, name in (("patient", case.patient), ("case", case.case)):
            other = spelt.setdefault((kind, normal_form(name)), name)
            if other != name:
                yield DataError(case.where, f"{kind} {name!r} is also spelt {other!r}", "spell it alike everywhere")
        for digest in (sha for file, sha, _ in case.digests if file == case.image):
            twin = digests.setdefault(digest, case)
            if twin.split != case.split and task.same_patient_in_splits is None:
                what = f"image {case.image!r} is the same file as {twin.image!r}, which stands in {twin.split}"
                yield DataError(case.where, what, "keep it in one split")
        owner = images.setdefault(Path(case.image), case.case)
        first = splits.setdefault(case.patient, case.split)
        if case.case in names:
            yield DataError(case.where, f"case {case.case!r} stands twice", "give every scan its own name")
        elif owner != case.case:
            yield DataError(case.where, f"image {case.image!r} is also that of case {owner!r}", "list every image once")
        if first != case.split and task.same_patient_in_splits is None:
            what = f"patient {case.patient!r} stands in {first} and in {case.split}"
            remedy = "keep a patient in one split, or give the reason in task.yaml under same_patient_in_splits"
            yield DataError(case.where, what, remedy)
        names.add(case.case)
