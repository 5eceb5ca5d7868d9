"""A package: the folder that a stage leaves and the next site begins with; zipped, one file.

It holds knowledge, what decides its learning, scores, a card and the ledger. Weights are safetensors, the rest is text:
nothing in it is code, and none of its files is looked at that does not belong to it.
"""

import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from garda.core import config, files
from garda.core.errors import GardaError, PackageError, RunFolderError
from garda.data.task import Task
from garda.evaluation.results import RESULTS
from garda.handover import ledger
from garda.handover.ledger import AGAIN, LEDGER, FileRecord
from garda.handover.setup import FORMAT, Setup, read_plan
from garda.methods.metadata import EXPERTS

SETUP, CARD, NOTICE, SIGNATURES = "setup.json", "card.md", "NOTICE.md", "signatures.jsonl"
DIGEST = "digest.txt"
OPEN = "stage.json"  # beside knowledge that has not been sealed yet
GENERATOR = "generator.safetensors"
EXPERT_FILES = tuple(f"{name}.safetensors" for name in EXPERTS)
WEIGHTS = ("segmenter.safetensors", "teacher.safetensors", *EXPERT_FILES, GENERATOR, "statistics.safetensors")
KNOWLEDGE = (*WEIGHTS, "knowledge.json")
CONTENTS = (*KNOWLEDGE, SETUP, RESULTS, CARD, NOTICE)
KNOWN = (*CONTENTS, LEDGER, DIGEST, SIGNATURES)
OPTIONAL = (GENERATOR, *EXPERT_FILES, SIGNATURES)
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's earliest date, in place of every file's own


@contextmanager
def opened(path: Path, stage: int | None = None) -> Iterator[Path]:
    """A package, given as a folder, as a zip file, or as the run whose last stage, or stage, it is.

    What is given is a private copy, which goes with the block: what has been verified is what is used.

    Raises:
        PackageError: there is none, or the zip file holds something else.
        RunFolderError: the run has no such stage.
    """
    if stage is not None and not (path / "plan.json").exists():
        raise PackageError(path, "is no run, and has no other stage than its last", "leave out --stage")
    if not path.is_dir() and not path.is_file():
        raise PackageError(path, "is no file or folder" if path.exists() else "does not exist", "check the path")
    found = find_stage(path, stage) if (path / "plan.json").exists() else path
    with files.private_temporary_folder() as folder:
        try:
            (_copy if found.is_dir() else _unfold)(found, folder)
            yield _check(folder, found)
        except GardaError as error:
            raise error.moved(folder, found) from None


def find_stage(run: Path, stage: int | None = None) -> Path:
    """The package of a stage of a run, or of the last one that has ended.

    Raises:
        RunFolderError: there is no such stage, or it has not ended yet.
    """
    folders = [stage_folder(run, index, planned.name) for index, planned in enumerate(read_plan(run).domains)]
    ended = [folder for folder in folders if folder.exists()]
    if stage is None and ended:
        return ended[-1]
    if stage is not None and not 0 <= stage < len(folders):
        raise RunFolderError(run, f"has no stage {stage}", f"its stages are 0 to {len(folders) - 1}")
    if stage is not None and folders[stage].exists():
        return folders[stage]
    wanted = "a stage" if stage is None else f"stage {stage}"
    raise RunFolderError(run, f"{wanted} has not ended yet", f"{len(ended)} of {len(folders)} have; go on first")


def stage_folder(run: Path, index: int, domain: str) -> Path:
    """Where a run keeps a stage's package."""
    return run / "stages" / f"{index}-{domain}" / "package"


def read_setup(folder: Path) -> Setup:
    """What decides a package's learning.

    Raises:
        PackageError: the file is damaged.
    """
    try:
        values = files.read_json(folder / SETUP)
        if isinstance(values, dict) and values.get("format") not in range(1, FORMAT + 1):
            what = f"is of format {values.get('format')!r}, this version of garda knows 1 to {FORMAT}"
            raise PackageError(folder / SETUP, what, "use the version of garda that wrote it, or a newer one")
        return Setup.model_validate(values)
    except (ValueError, RunFolderError, RecursionError):
        raise PackageError(folder / SETUP, "is damaged", "ask for the package again") from None


def read_task(setup: Setup, where: Path) -> Task:
    """The task of a setup."""
    return config.parse(Task, setup.task, where / SETUP)


def contents(folder: Path) -> tuple[FileRecord, ...]:
    """Records of what a ledger's line vouches for, by name."""
    return tuple(ledger.record(folder / name) for name in sorted(CONTENTS) if (folder / name).exists())


def package_digest(folder: Path) -> str:
    """SHA-256 over names and digests of contents and ledger: what two sites compare by another channel."""
    lines = [f"{known.sha256}  {known.name}\n" for known in (*contents(folder), ledger.record(folder / LEDGER))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def pack(folder: Path, path: Path) -> None:
    """Zip a package into one file, the same bytes for the same package.

    Raises:
        RunFolderError: the file exists, or cannot be written.
    """
    if path.exists():
        raise RunFolderError(path, "exists already", "give another name, or remove it")
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(KNOWN):
            if (folder / name).exists():
                archive.writestr(_member(name), (folder / name).read_bytes())


def _check(folder: Path, where: Path | None = None) -> Path:
    for name in (LEDGER, SETUP):
        if not (folder / name).is_file():
            raise PackageError(
                where or folder, f"is no package, {name} is missing", "give a package, or a run's --out folder"
            )
    return folder


def check_names(folder: Path) -> None:
    """Refuse links, folders, pipes, and files that belong to no package.

    Raises:
        PackageError: names the first.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise PackageError(path, "is no file of its own", AGAIN)
        if path.name not in KNOWN:
            raise PackageError(path, "is no part of a package", "remove it, or ask where it comes from")


def _copy(package: Path, folder: Path) -> None:
    """Copy a package's files, none of which is waited for or followed, whatever takes its place meanwhile."""
    check_names(_check(package))
    try:
        for path in package.iterdir():
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file, (folder / path.name).open("wb") as copy:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise PackageError(path, "is no file of its own", AGAIN)
                shutil.copyfileobj(file, copy)
    except OSError as error:
        raise PackageError(package, f"cannot be read ({files.reason(error)})", AGAIN) from None


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, EPOCH)
    member.create_system = 3  # the same bytes on every system
    return member


def _unfold(path: Path, folder: Path) -> None:
    """Extract a zipped package; every name is looked at before anything is written."""
    remedy = "ask for the package again"
    try:
        with files.writing(folder), zipfile.ZipFile(path) as archive:
            strange = next((name for name in archive.namelist() if name not in KNOWN), None)
            if strange is not None:
                raise PackageError(path, f"holds {strange!r}, which is no part of a package", remedy)
            if not _is_plain(archive, path.stat().st_size):
                raise PackageError(path, "is not zipped as garda zips a package", "zip it with `garda export --to zip`")
            archive.extractall(folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError):
        raise PackageError(path, "is no zipped package, or damaged", remedy) from None


def _is_plain(archive: zipfile.ZipFile, size: int) -> bool:
    """Whether nothing is in a zip file but uncompressed members, each once, without dates and remarks."""
    members = archive.infolist()
    plain = all(
        (m.compress_type, m.date_time, m.comment, m.extra, m.flag_bits) == (zipfile.ZIP_STORED, EPOCH, b"", b"", 0)
        for m in members
    )
    heads = sum(30 + 46 + 2 * len(m.filename) + m.file_size for m in members)  # local and central (APPNOTE 4.3)
    return plain and not archive.comment and len({*archive.namelist()}) == len(members) and size == heads + 22
