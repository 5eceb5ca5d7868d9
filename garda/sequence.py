"""What is adapted to what: the task, its domains and their cases, read from YAML and CSV and checked."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from garda.config import Config, load, load_yaml, merge
from garda.errors import ConfigError, DataError, GardaError, Problems
from garda.files import reason, replacing

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REQUIRED_COLUMNS = ("case", "patient", "split", "image", "label")
OPTIONAL_COLUMNS = ("image_sha256", "image_bytes", "label_sha256", "label_bytes")
DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # it names files, folders and metrics
SEVERAL = ";"  # between the masks of one case, and between their digests


class Intensity(Config):
    """How a volume's intensities become numbers in [0, 1]; nothing here looks at a label.

    The given percentiles of the whole volume (all channels together) become 0 and 1, what lies outside is clipped.
    """

    percentiles: tuple[float, float] = (0.5, 99.5)
    bias_field_correction: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Intensity:
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles must grow and lie between 0 and 100")
        return self


class LabelFormat(Config):
    """How a case's label file or files become one map of class indices.

    Attributes:
        values: file value -> class index for files whose values are not class indices, such as {255: 1}.
        masks: names of the mask files that the manifest's ``label`` column lists, separated by ``;``. The i-th mask
            is painted as class i + 1 over the ones before it. Empty: the column holds one label map.
        slice_labelled_by: name of a mask; a slice in which it is empty counts as a slice without a label.
    """

    values: dict[int, int] = Field(default_factory=dict)
    masks: tuple[str, ...] = ()
    slice_labelled_by: str | None = None

    @field_validator("values", mode="before")
    @classmethod
    def _whole_keys(cls, values: object) -> object:
        """JSON, in which a run keeps its task, has no keys but text."""
        if not isinstance(values, dict):
            return values
        return {int(key) if isinstance(key, str) and key.isdecimal() else key: index for key, index in values.items()}

    @model_validator(mode="after")
    def _known_mask(self) -> LabelFormat:
        if self.slice_labelled_by is not None and self.slice_labelled_by not in self.masks:
            raise ValueError(f"slice_labelled_by names {self.slice_labelled_by!r}, which is not in label.masks")
        return self


class Task(Config):
    """What is segmented, and on which grid: the contents of a ``task.yaml``.

    Attributes:
        name: the task's name.
        classes: class names; label value i means ``classes[i]``, the first is the background. They stand in the names
            of metrics, ``dice/<domain>/<class>``, and so have no ``/``.
        channels: image channels of the network; a grey image is repeated.
        size: (H, W) of the network's input, pixels.
        spacing_mm: (row, column) spacing to which slices are resampled; None keeps the image's own pixels.
        fit: ``crop`` cuts or pads every slice around its centre to ``size``; ``patch`` keeps larger slices, learns
            from random patches and predicts with a sliding window.
        plane: the anatomical plane of a slice; ``acquired`` slices along the stored third axis.
        any_orientation: True where a flipped or turned image is as likely as the original (microscopy).
        intensity: how intensities are scaled.
        label: how label files are read.
        same_patient_in_splits: the reason why one patient may stand in two splits; every table repeats it.
    """

    name: str
    classes: tuple[str, ...] = Field(min_length=2)
    channels: Literal[1, 3] = 1
    size: tuple[int, int]
    spacing_mm: tuple[float, float] | None = None
    fit: Literal["crop", "patch"] = "crop"
    plane: Literal["axial", "coronal", "sagittal", "acquired"] = "axial"
    any_orientation: bool = False
    intensity: Intensity = Intensity()
    label: LabelFormat = LabelFormat()
    same_patient_in_splits: str | None = None

    @field_validator("channels", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        """``True`` equals 1, which is all that a Literal looks at."""
        return str(value) if isinstance(value, bool) else value

    @field_validator("classes")
    @classmethod
    def _distinct_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name.strip() or "/" in name for name in names):
            raise ValueError("class names must not be empty or hold a '/'")
        if len(set(names)) < len(names):
            raise ValueError("class names must differ")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm must be greater than 0")
        if any(side < 16 or side % 16 for side in self.size):
            raise ValueError("size must be multiples of 16 pixels, at least 16")
        if self.label.masks and len(self.label.masks) != len(self.classes) - 1:
            raise ValueError(f"label.masks needs one mask for each of {len(self.classes) - 1} foreground classes")
        if any(not 0 <= value < len(self.classes) for value in self.label.values.values()):
            raise ValueError(f"label.values must map to class indices 0 to {len(self.classes) - 1}")
        return self


@dataclass(frozen=True)
class Case:
    """One manifest row. Paths are relative to the data folder.

    Attributes:
        case: the scan's name, unique in its domain.
        patient: whose scan it is. Known within its site only: ``001`` of two domains is two people.
        split: train, val or test.
        image: an image file, or a folder with one DICOM series.
        labels: one label map, or one mask a foreground class; empty where there is no label.
        digests: (relative path, SHA-256, bytes) of each file that the manifest records.
        where: manifest file and line, for messages.
    """

    case: str
    patient: str
    split: Split
    image: str
    labels: tuple[str, ...]
    digests: tuple[tuple[str, str, int], ...]
    where: str


@dataclass(frozen=True)
class Domain:
    """One site's cases. ``index`` 0 is the source; the index is the position in the sequence."""

    name: str
    index: int
    cases: tuple[Case, ...]

    def split(self, split: Split) -> tuple[Case, ...]:
        """The cases of one split, in manifest order."""
        return tuple(case for case in self.cases if case.split == split)


class Pipeline(Config):
    """The contents of a pipeline YAML: which domains, in which order, learnt how.

    Attributes:
        name: the sequence's name.
        manifests: folder with ``task.yaml`` and the domains' CSV files, relative to the pipeline file.
        source: the labelled domain; a name of letters, digits and ``_.-`` that starts with a letter or digit.
        targets: the unlabelled domains, in the order of adaptation; names as above.
        config: a YAML of ``configs/``, relative to the pipeline file.
        method: the method's name.
        seed: seed of everything random.
        settings: changes laid over ``config``.
    """

    name: str
    manifests: str
    source: DomainName
    targets: tuple[DomainName, ...] = ()
    config: str
    method: str
    seed: int = Field(default=0, ge=0, lt=2**31)
    settings: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class DomainSequence:
    """Everything that decides a run.

    Attributes:
        name: the pipeline's name.
        task: what is segmented.
        source: the labelled domain.
        targets: the unlabelled domains in order.
        method: name of the method.
        settings: the merged settings, still unparsed: each method knows its own model of them.
        config: the file that the settings come from, for messages.
        digests: SHA-256 of each domain's manifest file, by domain.
        seed: seed of everything random.
    """

    name: str
    task: Task
    source: Domain
    targets: tuple[Domain, ...]
    method: str
    settings: dict[str, Any]
    config: Path
    digests: dict[str, str]
    seed: int

    @property
    def domains(self) -> tuple[Domain, ...]:
        """Source and targets, in order."""
        return (self.source, *self.targets)


def read_sequence(
    pipeline_file: Path,
    *,
    config: Path | None = None,
    method: str | None = None,
    seed: int | None = None,
    changes: dict[str, Any] | None = None,
) -> DomainSequence:
    """Read a pipeline with its configuration, task and manifests.

    Args:
        pipeline_file: a YAML of ``pipelines/``.
        config: takes the place of the pipeline's config.
        method: takes the place of the pipeline's method.
        seed: takes the place of the pipeline's seed.
        changes: settings laid over the pipeline's own.

    Raises:
        ConfigError: a YAML file does not fit.
        DataError: a manifest does not fit in one place.
        Problems: manifests do not fit in several.
    """
    pipeline = load(Pipeline, pipeline_file)
    folder = pipeline_file.parent / pipeline.manifests
    task = load(Task, folder / "task.yaml")
    names = (pipeline.source, *pipeline.targets)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(pipeline_file, f"domain {name!r} stands twice in the sequence", "name each domain once")
    domains = _read_domains(folder, names, task)
    config = config or pipeline_file.parent / pipeline.config
    settings = merge(load_yaml(config), pipeline.settings)
    return DomainSequence(
        name=pipeline.name,
        task=task,
        source=domains[0],
        targets=domains[1:],
        method=method or pipeline.method,
        settings=merge(settings, changes or {}),
        config=config,
        digests={name: hashlib.sha256((folder / f"{name}.csv").read_bytes()).hexdigest() for name in names},
        seed=pipeline.seed if seed is None else seed,
    )


def _read_domains(folder: Path, names: Sequence[str], task: Task) -> tuple[Domain, ...]:
    """The domains in order; what is wrong with any of their manifests is told in one go."""
    domains: list[Domain] = []
    problems: list[GardaError] = []
    for index, name in enumerate(names):
        try:
            domains.append(Domain(name, index, read_manifest(folder / f"{name}.csv", task)))
        except Problems as several:
            problems += several.problems
        except DataError as error:
            problems.append(error)
    _raise_all(problems)
    return tuple(domains)


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
        problems.append(
            DataError(f"{path}:{reader.reader.line_num}", f"is no CSV ({error})", "mend the quotes of the row")
        )
    problems += _find_repetitions(cases, task)
    if not cases and not problems:
        raise DataError(path, "holds no case", "add a row for each scan")
    _raise_all(problems)
    return tuple(cases)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
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


def _raise_all(problems: list[GardaError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)


def write_manifest(path: Path, cases: Sequence[Case]) -> None:
    """Write one domain's CSV, the counterpart of :func:`read_manifest`; digests only where a case has them.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    columns = REQUIRED_COLUMNS + (OPTIONAL_COLUMNS if any(case.digests for case in cases) else ())
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(_row(case) for case in cases)


def _row(case: Case) -> dict[str, str]:
    row = {"case": case.case, "patient": case.patient, "split": case.split}
    known = {file: (digest, str(size)) for file, digest, size in case.digests}
    for column, files in (("image", (case.image,)), ("label", case.labels)):
        row[column] = SEVERAL.join(files)
        row[f"{column}_sha256"] = SEVERAL.join(known[file][0] for file in files if file in known)
        row[f"{column}_bytes"] = SEVERAL.join(known[file][1] for file in files if file in known)
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
    return Case(row["case"], row["patient"], row["split"], row["image"], labels, _digests(row, labels, where), where)


def _digests(row: dict[str, str], labels: tuple[str, ...], where: str) -> tuple[tuple[str, str, int], ...]:
    found: list[tuple[str, str, int]] = []
    for column, files in (("image", (row["image"],)), ("label", labels)):
        digests = _parts(row.get(f"{column}_sha256", "").lower())
        sizes = _parts(row.get(f"{column}_bytes", ""))
        if not digests and not sizes:
            continue
        if not len(digests) == len(sizes) == len(files) or not all(size.isdecimal() for size in sizes):
            raise DataError(where, f"{column}_sha256 and {column}_bytes do not fit the files", "run `garda manifest`")
        found += zip(files, digests, map(int, sizes), strict=True)
    return tuple(found)


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(SEVERAL) if part.strip()]


def _find_repetitions(cases: Sequence[Case], task: Task) -> list[GardaError]:
    problems: list[GardaError] = []
    names: set[str] = set()
    images: dict[Path, str] = {}
    splits: dict[str, Split] = {}
    for case in cases:
        owner = images.setdefault(Path(case.image), case.case)
        first = splits.setdefault(case.patient, case.split)
        if case.case in names:
            problems.append(DataError(case.where, f"case {case.case!r} stands twice", "give every scan its own name"))
        elif owner != case.case:
            what = f"image {case.image!r} is also that of case {owner!r}"
            problems.append(DataError(case.where, what, "list every image once"))
        if first != case.split and task.same_patient_in_splits is None:
            what = f"patient {case.patient!r} stands in {first} and in {case.split}"
            remedy = "keep a patient in one split, or give the reason in task.yaml under same_patient_in_splits"
            problems.append(DataError(case.where, what, remedy))
        names.add(case.case)
    return problems


def find_gaps(sequence: DomainSequence) -> list[GardaError]:
    """What a sequence lacks before any file is opened: splits without cases, a source without labels."""
    gaps: list[GardaError] = []
    for domain in sequence.domains:
        train = domain.split("train")
        if not train:
            gaps.append(DataError(domain.name, "the train split is empty", "give at least one case the split train"))
        unlabelled = [case for case in train if not case.labels]
        if domain is sequence.source and unlabelled:
            gaps.append(
                DataError(unlabelled[0].where, "a source needs a label for every training case", "fill column label")
            )
    return gaps
