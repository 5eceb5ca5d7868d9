"""Scan files to arrays and back: NIfTI, MetaImage, PNG and TIFF; DICOM by :mod:`garda.data.dicom`."""

import glob
import gzip
import hashlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, UnidentifiedImageError

from garda.core.errors import DataError, GardaError
from garda.data import dicom, scan
from garda.data.scan import RawImage, ScanFile

NIFTI = (".nii.gz", ".nii")
META_IMAGE = (".mha", ".mhd")
PICTURE = (".png", ".tif", ".tiff")
Recorded = tuple[str, int]  # SHA-256 (hexadecimal) and bytes
WIDTH, HEIGHT, DESCRIPTION, ORIENTATION = 256, 257, 270, 274  # tags of TIFF 6.0
STACK = re.compile(r"^images=(\d+)$", re.MULTILINE)  # how ImageJ says that one directory stands for many planes
NUMBERED = re.compile(r"%\d*d")  # where MetaImage writes a number into the names of several data files


def split_name(path: Path) -> tuple[str, str]:
    """The name without its suffix, and the suffix in lower case; an empty suffix where the format is not known.

    >>> split_name(Path("site/Scan.NII.gz")), split_name(Path("notes.txt"))
    (('Scan', '.nii.gz'), ('notes.txt', ''))
    """
    suffix = next((known for known in NIFTI + META_IMAGE + PICTURE if path.name.lower().endswith(known)), "")
    return path.name[: len(path.name) - len(suffix)], suffix


def read_stored(file: ScanFile, *, palette: bool = False) -> RawImage:
    """Read a scan or a label map.

    Args:
        file: what to read; a folder or a zipped study is read as one DICOM series.
        palette: True for the indices of a palette image, False for its colours.

    Raises:
        DataError: the file is missing, damaged or of an unknown format, or does not hold one image of real numbers.
    """
    file.require()
    try:
        stored = _read(file, palette)
    except GardaError:
        raise
    except Exception as error:  # decoders meet damaged bytes with anything from struct.error to SyntaxError
        if isinstance(error, OSError) and error.errno:  # what the system refuses; decoders set no errno
            raise file.error(*scan.cannot_read(error)) from None
        raise file.error(*_what_failed(error)) from None
    if stored.pixels.dtype.kind not in "biuf":
        raise file.error(f"holds values of type {stored.pixels.dtype}", "store real numbers")
    return stored


def encode_label_map(array: np.ndarray, header: nib.Nifti1Header | None, *, compress: bool) -> bytes:
    """A file's bytes: PNG without a header, else NIfTI with the header's geometry; equal maps give equal bytes.

    Args:
        array: (X, Y, Z) class indices below 256 in the stored order of the image.
        header: of the image; its extensions and free text, which may name the patient, are not copied.
        compress: True for ``.nii.gz``.

    >>> encode_label_map(np.zeros((4, 4, 1)), None, compress=False)[1:4]
    b'PNG'
    """
    array = array.astype(np.uint8)
    if header is None:
        buffer = io.BytesIO()
        Image.fromarray(array[:, :, 0].T).save(buffer, format="PNG")
        return buffer.getvalue()
    header = header.copy()
    header.extensions.clear()
    for text in ("descrip", "aux_file", "db_name", "intent_name"):
        if text in header:
            header[text] = b""
    header.set_data_dtype(np.uint8)
    header["cal_min"], header["cal_max"] = 0, 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    encoded = kind(array.reshape(header.get_data_shape()[:3]), header.get_best_affine(), header).to_bytes()
    return gzip.compress(encoded, mtime=0) if compress else encoded


def digest(path: Path) -> Recorded:
    """SHA-256 (hexadecimal) and bytes of a scan: a file, a series folder, or an ``.mhd`` header with its data files.

    A series in a zipped study has those of the whole zip file. Several files have the SHA-256 of their digests one
    after the other, and the sum of their bytes. A folder's are sorted by digest, so that it outlives renaming, and
    hidden files are left out.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    try:
        parts = [_digest_file(file) for file in files_of(path)]
        if path.is_dir():
            return _join(sorted(parts))
        return parts[0] if len(parts) == 1 else _join(parts)
    except OSError as error:
        what, remedy = scan.cannot_read(error)
        if error.filename is not None and Path(error.filename) != path:
            what = f"has a part {Path(error.filename).name} that {what}"
        raise DataError(path, what, remedy) from None


def files_of(path: Path) -> list[Path]:
    """The files that a scan's digest is made of.

    Raises:
        OSError: a folder or a header cannot be read.
    """
    if packed := scan.split_archive(path):
        return [packed[0]]
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    return [path, *_data_files(path)]


def _digest_file(path: Path) -> Recorded:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest(), path.stat().st_size


def _join(parts: Sequence[Recorded]) -> Recorded:
    joined = "".join(sha for sha, _ in parts)
    return hashlib.sha256(joined.encode()).hexdigest(), sum(size for _, size in parts)


def _data_files(path: Path) -> list[Path]:
    """The files that a MetaImage header names in its last entry, ``ElementDataFile``; none for other files.

    The entry is ``LOCAL`` (data follow in the same file), a name, ``LIST`` with a name on every line below, or a
    pattern such as ``slice%03d.raw 1 9 1``, for which every file of such a name is taken.
    """
    if split_name(path)[1] != ".mhd":
        return []
    with path.open("rb") as header:
        entry = next((line for line in header if line.partition(b"=")[0].strip() == b"ElementDataFile"), b"")
        name = os.fsdecode(entry.partition(b"=")[2]).strip()
        if name.startswith("LIST"):
            return [path.parent / os.fsdecode(line).strip() for line in header if line.strip()]
    if NUMBERED.search(name):
        numbered = path.parent / name.split()[0]
        return sorted(numbered.parent.glob(NUMBERED.sub("*", glob.escape(numbered.name))))
    return [] if name in ("", "LOCAL") else [path.parent / name]


def _read(file: ScanFile, palette: bool) -> RawImage:
    if dicom.is_dicom(file.path):
        return dicom.read_series(file)
    suffix = split_name(file.path)[1]
    if suffix in NIFTI:
        return _read_nifti(file)
    if suffix in META_IMAGE:
        import SimpleITK as sitk

        return scan.from_itk(sitk.ReadImage(file.path), file)
    if suffix in PICTURE:
        return _read_picture(file, palette)
    known = ".nii, .nii.gz, .mha, .mhd, .png, .tif, a DICOM series folder or its .zip"
    raise file.error("is of no known format", f"give {known}")


def _what_failed(error: Exception) -> tuple[str, str]:
    """What a decoder's error says of a file, and the remedy."""
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels", "cut it into tiles"
    if isinstance(error, UnidentifiedImageError):
        return "is no picture of the format that its name says", "give it the name of its format, or copy it again"
    return (
        f"cannot be read ({type(error).__name__})",
        "copy it again, it may be truncated or in a compression not known",
    )


def _read_nifti(file: ScanFile) -> RawImage:
    image = nib.load(file.path, mmap=False)
    if image.ndim > 4:
        raise file.error(f"has {image.ndim} dimensions", "give a 3-D image, or a 4-D one whose last axis are channels")
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise file.error("has an affine that cannot be inverted", "mend the sform or qform in its header")
    pixels = np.asarray(image.dataobj)
    return RawImage(pixels.reshape(*(*pixels.shape, 1)[:3], -1), image.header)


def _read_picture(file: ScanFile, palette: bool) -> RawImage:
    with Image.open(file.path) as image:
        tags = getattr(image, "tag_v2", {})
        stack = STACK.search(str(tags.get(DESCRIPTION, "")))
        pages = max(getattr(image, "n_frames", 1), int(stack[1]) if stack else 1)
        if pages > 1:
            raise file.error(f"holds {pages} pages", "store every page as a file of its own")
        grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16") or (image.mode == "P" and palette)
        if not grey and any(";16" in str(tile.args) for tile in image.tile):
            raise file.error(
                "has 16 bits a colour, which would be cut to 8", "store 8 bits a colour, or one grey channel"
            )
        if tags:
            image.getexif()[ORIENTATION] = 1  # pixels come as they are stored, like those of any other picture
        if "A" in image.getbands() and len({*image.getchannel("A").getextrema()}) > 1:
            raise file.error("has pixels more transparent than others", "store it without an alpha channel")
        plain = image if grey else image.convert("L" if image.mode in ("LA", "La") else "RGB")
        pixels = np.asarray(plain)
        if tags:  # an orientation that swaps sides would leave the sides swapped
            pixels = pixels.reshape(tags[HEIGHT], tags[WIDTH], *pixels.shape[2:])
    return RawImage(pixels.reshape(*pixels.shape[:2], 1, -1).swapaxes(0, 1), None)
