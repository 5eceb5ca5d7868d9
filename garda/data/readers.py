"""Scan files to arrays and back: NIfTI, MetaImage, PNG and TIFF; DICOM by :mod:`garda.data.dicom`."""

import gzip
import hashlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, UnidentifiedImageError

from garda.core import files
from garda.core.errors import DataError, GardaError
from garda.data import dicom, meta_image, scan
from garda.data.scan import RawImage, ScanFile

NIFTI = (".nii.gz", ".nii")
META_IMAGE = (".mha", ".mhd")
PICTURE = (".png", ".tif", ".tiff")
Recorded = tuple[str, int]  # SHA-256 (hexadecimal) and bytes
PLACE = (
    "xyzt_units qform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z sform_code srow_x srow_y srow_z"
)
NIFTI_2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # its first bytes: the length of its header
DEFLATE = 1032  # bytes that a byte of a gzip file stands for at most (zlib's technical details)
WIDTH, HEIGHT, BITS, COMPRESSION, DESCRIPTION, ORIENTATION = 256, 257, 258, 259, 270, 274  # tags of TIFF 6.0
STACK = re.compile(r"^images=(\d+)$", re.MULTILINE)  # how ImageJ says that one directory stands for many planes


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
        if isinstance(error, OSError) and (error.errno or error.filename):  # decoders set neither
            raise file.error(*scan.cannot_read(error)) from None
        raise file.error(*_what_failed(error)) from None
    if stored.pixels.dtype.kind not in "biuf":
        raise file.error(f"holds values of type {stored.pixels.dtype}", "store real numbers")
    return stored


def encode_label_map(array: np.ndarray, header: nib.Nifti1Header | None, *, compress: bool) -> bytes:
    """A file's bytes: PNG without a header, else NIfTI with the header's geometry; equal maps give equal bytes.

    Args:
        array: (X, Y, Z) class indices below 256 in the stored order of the image.
        header: of the image; nothing but its geometry is copied: other fields may name the patient.
        compress: True for ``.nii.gz``.

    >>> encode_label_map(np.zeros((4, 4, 1)), None, compress=False)[1:4]
    b'PNG'
    """
    array = array.astype(np.uint8)
    if header is None:
        buffer = io.BytesIO()
        Image.fromarray(array[:, :, 0].T).save(buffer, format="PNG")
        return buffer.getvalue()
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    own = kind.header_class(endianness=header.endianness)
    own.set_data_dtype(np.uint8)
    for name in PLACE.split():
        own[name] = header[name]
    own["pixdim"][:4] = header["pixdim"][:4]
    encoded = kind(array.reshape(header.get_data_shape()[:3]), header.get_best_affine(), own).to_bytes()
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
    return [path, *(meta_image.data_files(path) if split_name(path)[1] in META_IMAGE else ())]


def _digest_file(path: Path) -> Recorded:
    files.refuse_special(path)
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest(), path.stat().st_size


def _join(parts: Sequence[Recorded]) -> Recorded:
    joined = "".join(sha for sha, _ in parts)
    return hashlib.sha256(joined.encode()).hexdigest(), sum(size for _, size in parts)


def _read(file: ScanFile, palette: bool) -> RawImage:
    if dicom.is_dicom(file.path):
        return dicom.read_series(file)
    suffix = split_name(file.path)[1]
    if suffix in NIFTI:
        return _read_nifti(file)
    if suffix in META_IMAGE:
        return meta_image.read_meta_image(file)
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
    """A NIfTI file, read to its end: only there a gzip file says whether it is whole."""
    size, packed = file.path.stat().st_size, split_name(file.path)[1] == ".nii.gz"
    with gzip.open(file.path) if packed else file.path.open("rb") as opened:
        kind = nib.Nifti2Image if opened.peek(4)[:4] in NIFTI_2 else nib.Nifti1Image
        raw = kind.header_class.from_fileobj(opened, check=False)
        opened.seek(0)
        image = kind.from_file_map({"image": nib.FileHolder(fileobj=opened)}, mmap=False)
        _check_nifti(file, image, raw, size * (DEFLATE if packed else 1))
        pixels = np.asarray(image.dataobj)
        surplus = sum(len(part) for part in iter(lambda: opened.read(2**20), b""))
    width = image.get_data_dtype().itemsize
    scan.check_length(file, image.shape, width, math.prod(image.shape) * width + surplus)
    return RawImage(pixels.reshape(*(*pixels.shape, 1)[:3], -1), image.header)


def _check_nifti(file: ScanFile, image: nib.Nifti1Image, raw: nib.Nifti1Header, most: int) -> None:
    """Refuse a header that fits no image of ``most`` bytes, or, as it stands in the file, must be mended to be read."""
    qform, sform, units = (int(raw[name]) for name in ("qform_code", "sform_code", "xyzt_units"))
    odd = [name for name, code in (("qform_code", qform), ("sform_code", sform)) if not 0 <= code <= 5]
    odd += ["xyzt_units"] * (units & 7 >= len(scan.UNITS)) + ["scl_slope"] * bool(np.isinf(raw["scl_slope"]))
    if sform == 0:  # sizes are those of pixdim alone, and whether slices are turned over
        turned, *sizes = map(float, raw["pixdim"][: 1 + min(image.ndim, 3)])
        odd += ["pixdim"] * (not min(sizes) > 0 or (qform > 0 and turned not in (-1, 0, 1)))
    if odd:
        raise file.error(f"has no valid {odd[0]} in its header", "correct the header, or convert the scan again")
    if image.ndim > 4:
        raise file.error(f"has {image.ndim} dimensions", "give a 3-D image, or a 4-D one whose last axis are channels")
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise file.error("has an affine that cannot be inverted", "mend the sform or qform in its header")
    width = image.get_data_dtype().itemsize
    scan.check_length(file, image.shape, width, min(most, math.prod(image.shape) * width))


def _read_picture(file: ScanFile, palette: bool) -> RawImage:
    with Image.open(file.path, formats=("PNG", "TIFF")) as image:
        image.verify()  # the check sums of PNG
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
        bits = sum(tags.get(BITS, (1,))) * image.width * image.height
        if tags and tags.get(COMPRESSION, 1) == 1 and bits > 8 * file.path.stat().st_size:  # would be filled up
            raise file.error("holds fewer values than its header says", "copy it again, it may be truncated")
        if tags:
            image.getexif()[ORIENTATION] = 1  # pixels come as they are stored, like those of any other picture
        clear = image.convert("RGBA") if "transparency" in image.info and not (image.mode == "P" and palette) else image
        if "A" in clear.getbands() and len({*clear.getchannel("A").getextrema()}) > 1:
            raise file.error("has pixels more transparent than others", "store it without an alpha channel")
        plain = image if grey else image.convert("L" if image.mode in ("LA", "La") else "RGB")
        pixels = np.asarray(plain)
        if tags:  # an orientation that swaps sides would leave the sides swapped
            pixels = pixels.reshape(tags[HEIGHT], tags[WIDTH], *pixels.shape[2:])
    return RawImage(pixels.reshape(*pixels.shape[:2], 1, -1).swapaxes(0, 1), None)
