"""MetaImage: where a header's data lie, and whether they are whole, of which the library that reads them says nothing.

It fills up what is missing, takes what a damaged zlib stream has given so far, and a size that is not said for 1 mm.
"""

import glob
import math
import os
import re
import zlib
from pathlib import Path

from garda.core import files
from garda.data import scan
from garda.data.scan import RawImage, ScanFile

NUMBERED = re.compile(r"%\d*d")  # where a number is written into the names of several data files
LONGEST = 2**16  # bytes of a header


def read_meta_image(file: ScanFile) -> RawImage:
    """Read a header with its data.

    Raises:
        DataError: sizes are not said, or data are missing, damaged or too many.
        Exception: whatever the library meets.
    """
    import SimpleITK as sitk

    header, start = _read_header(file.path)
    if not min(map(float, header.get("ElementSpacing", header.get("ElementSize", "0")).split())) > 0:
        raise file.error("does not say how large its voxels are", "give it its ElementSpacing")
    if (scale := [value for key, value in header.items() if key.startswith("ElementToIntensityFunction")]) not in (
        [],
        ["1", "0"],
    ):
        raise file.error(f"scales its values ({', '.join(scale)}), which is not read", "store the values themselves")
    for part in data_files(file.path):
        files.refuse_special(part)
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(file.path))
    reader.ReadImageInformation()
    one = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    voxel = sitk.GetArrayViewFromImage(one).nbytes
    needed = voxel * math.prod(reader.GetSize())
    if header.get("BinaryData", "True").lower() in ("true", "1"):
        scan.check_length(file, reader.GetSize(), voxel, _length(file.path, header, start, needed))
    return scan.from_itk(reader.Execute(), file)


def data_files(path: Path) -> list[Path]:
    """The files that a header names in its last entry, ``ElementDataFile``.

    The entry is ``LOCAL`` (data follow in the same file), a name, ``LIST`` with a name on every line below, or a
    pattern such as ``slice%03d.raw 1 9 1``, for which every file of such a name is taken.
    """
    header, start = _read_header(path)
    name = header.get("ElementDataFile", "")
    if name.startswith("LIST"):
        lines = path.read_bytes()[start:].splitlines()
        return [path.parent / os.fsdecode(line).strip() for line in lines if line.strip()]
    if NUMBERED.search(name):
        numbered = path.parent / name.split()[0]
        return sorted(numbered.parent.glob(NUMBERED.sub("*", glob.escape(numbered.name))))
    return [] if name in ("", "LOCAL") else [path.parent / name]


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """A header's entries, and where in its file they end."""
    found: dict[str, str] = {}
    files.refuse_special(path)
    with path.open("rb") as opened:
        while "ElementDataFile" not in found and (line := opened.readline(LONGEST)) and opened.tell() <= LONGEST:
            key, _, value = line.partition(b"=")
            found[os.fsdecode(key).strip()] = os.fsdecode(value).strip()
        return found, opened.tell()


def _length(path: Path, header: dict[str, str], start: int, needed: int) -> int:
    """Bytes of data, those of a zlib stream read to its end; zlib.error where it is damaged."""
    parts = data_files(path)
    if header.get("CompressedData", "False").lower() not in ("true", "1"):
        skipped = int(header.get("HeaderSize", 0))
        if skipped < 0:  # data are what the file ends with
            return needed
        return sum(part.stat().st_size - skipped for part in parts) if parts else path.stat().st_size - start
    stream, length = zlib.decompressobj(), 0
    with (parts[0] if parts else path).open("rb") as opened:
        opened.seek(0 if parts else start)
        while not stream.eof and (block := opened.read(2**16)):
            length += len(stream.decompress(block))
        read = opened.tell() - len(stream.unused_data) - (0 if parts else start)
    said = header.get("CompressedDataSize", str(read) if parts else "")
    return length if stream.eof and said == str(read) else -1
