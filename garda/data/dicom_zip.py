"""Zipped DICOM studies: what lies in them, and how it is unpacked."""

import lzma
import shutil
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from garda.core import files
from garda.core.errors import printable
from garda.data.scan import ScanFile

PREAMBLE = 128  # bytes of anything before DICM (PS3.10, section 7.1)
DIRECTORY = "DICOMDIR"
ELSEWHERE = "set TMPDIR to a folder with more space"


def archived_folders(file: ScanFile) -> list[str]:
    """The folders of a zip file that hold DICOM files, sorted.

    Raises:
        DataError: it is damaged, encrypted, or no zip file.
    """
    with _opened(file, file.path) as archive:
        return sorted(_by_folder(archive))


def unpack(file: ScanFile, path: Path, inside: str, folder: Path) -> None:
    """Write the DICOM files of one folder of a zip file into ``folder``, under names of their own.

    Args:
        file: the scan, for errors.
        path: the zip file.
        inside: the folder in it; empty for the only one.
        folder: where to.

    Raises:
        DataError: the zip file is damaged or encrypted, has no such folder, or there is no space for it.
    """
    with _opened(file, path) as archive:
        folders = _by_folder(archive)
        known = printable(", ".join(sorted(folders)[:3]))
        if not inside and "" not in folders and len(folders) > 1:
            raise file.error(f"holds {len(folders)} folders with DICOM files", f"name one behind it: {known}")
        only = next(iter(folders)) if len(folders) == 1 else ""
        members = folders.get(inside or only, [])
        if not members:
            remedy = f"name one that has: {known}" if folders else "check the file"
            raise file.error("is a zip file without a DICOM series there", remedy)
        size, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
        if size > free:
            what = f"takes {size / 1e9:.1f} GB unpacked, {folder.parent.parent} has {free / 1e9:.1f}"
            raise file.error(what, ELSEWHERE)
        for index, member in enumerate(members):
            with archive.open(member) as source:
                try:
                    with (folder / f"{index:06}.dcm").open("xb") as target:
                        shutil.copyfileobj(source, target)
                except OSError as error:
                    raise file.error(f"cannot be unpacked ({files.reason(error)})", ELSEWHERE) from None


@contextmanager
def _opened(file: ScanFile, path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file; whatever is wrong with it is the scan's error."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError):
        raise file.error("is no zip file, or damaged", "copy it again, it may be truncated") from None
    except (NotImplementedError, RuntimeError):  # an unknown compression, or a password
        raise file.error("is encrypted, or packed in an unknown way", "zip it again without a password") from None


def _by_folder(archive: zipfile.ZipFile) -> dict[str, list[zipfile.ZipInfo]]:
    """The DICOM files of a zip file by their folder in it, without its directory file, hidden files and viewers."""
    found = defaultdict(list)
    for member in archive.infolist():
        parts = [part for part in member.filename.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if member.is_dir() or not parts or parts[0] == "__MACOSX":
            continue
        if parts[-1].startswith(".") or parts[-1].upper() == DIRECTORY:
            continue
        with archive.open(member) as opened:
            if begins_as_dicom(opened):
                found["/".join(parts[:-1])].append(member)
    return dict(found)


def begins_as_dicom(opened: IO[bytes]) -> bool:
    """Whether an opened file begins as DICOM says.

    >>> import io
    >>> begins_as_dicom(io.BytesIO(bytes(128) + b"DICM"))
    True
    """
    return opened.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
