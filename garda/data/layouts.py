"""Folder layouts in which scans and labels are handed on: plain pairs, nnU-Net's raw data, BIDS with derivatives."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from garda.core.errors import DataError
from garda.data import dicom, dicom_zip, readers
from garda.data.scan import ARCHIVE, ScanFile, split_archive

Layout = Literal["pairs", "nnunet", "bids", "plain"]
SIGNS: dict[Layout, str] = {"nnunet": "imagesTr", "pairs": "images", "bids": "sub-*"}  # the folder that gives it away
LABEL_FOLDERS = ("labels", "masks", "annotations")
NAMES_OF_IMAGES, NAMES_OF_LABELS = ("images", "imagesTr", "imagesTs"), (*LABEL_FOLDERS, "labelsTr", "labelsTs")
Found = list[tuple[str, Path]]  # name without suffix, and file
ADDED = re.compile(r"(?:[\W_]\D*)?")  # what a label's name may add to its image's
MOST = 10  # files that are named
LABEL_TAIL = re.compile(r"[_-](seg|segmentation|label|labels|mask|gt|dseg)$", re.IGNORECASE)
FIRST = "_0000"  # the first channel
CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's case_0000.nii.gz


@dataclass(frozen=True)
class Scan:
    """An image with its labels.

    Attributes:
        key: the image's path below the layout's image folder without suffix, such as ``p1/a``; its name alone in BIDS.
        image: file, folder with one DICOM series, or zipped study with the folder in it where there are several.
        labels: files in the order of the suffixes that were asked for; empty where there is none.
        patient: whose scan it is, where the layout tells.
        test: True where the layout sets it apart for testing.
    """

    key: str
    image: Path
    labels: tuple[Path, ...] = ()
    patient: str | None = None
    test: bool = False


def recognise_layout(folder: Path) -> Layout:
    """The layout of a folder: that of the first sign in it.

    Raises:
        DataError: the folder follows none.
    """
    for layout, sign in SIGNS.items():
        if any(found.is_dir() for found in folder.glob(sign)):
            return layout
    raise DataError(folder, "has no folder images, imagesTr or sub-*", "put images in images/ and labels in labels/")


def refuse_labels(folder: Path) -> None:
    """Refuse a folder whose images would be taken together with their label maps.

    Raises:
        DataError: it, or a folder below it, has a folder for each.
    """
    for parent, below, _ in os.walk(folder):
        images, labels = ([name for name in names if name in below] for names in (NAMES_OF_IMAGES, NAMES_OF_LABELS))
        if images and labels:
            where = Path(parent)
            raise DataError(folder, f"holds label maps too, in {where / labels[0]}", f"give {where / images[0]}")


def find_scans(folder: Path, layout: Layout, image_suffix: str, label_suffixes: Sequence[str]) -> list[Scan]:
    """Every image of a folder with its labels, sorted by path.

    Arguments as in :func:`garda.data.build_manifest.build_manifest`.

    Raises:
        DataError: no image is found, two have one name, a label is ambiguous, one of several masks is missing, or a
            patient of BIDS has several contrasts.
        OSError: a folder may not be listed, or a file not be opened.
    """
    images, labels = {"pairs": _pairs, "nnunet": _nnunet, "bids": _bids, "plain": _plain}[layout](folder)
    wanted = [scan for scan in images if scan.key.endswith(image_suffix)]
    if layout == "bids":
        _refuse_contrasts(folder, wanted)
    if not wanted:
        remedy = "put images where the layout has them, every DICOM series in a folder of its own"
        raise DataError(folder, f"holds no image in layout {layout!r}", remedy)
    key, count = Counter(scan.key for scan in wanted).most_common(1)[0]
    if count > 1:
        raise DataError(folder, f"holds {count} images named {key!r}", "give every image a name of its own")
    if not label_suffixes:
        owned = _by_owner({scan.key for scan in images}, labels)
        return [replace(scan, labels=_only_label(scan, owned.get(scan.key, ()))) for scan in wanted]
    files: dict[str, list[Path]] = {}
    for name, label in labels:
        files.setdefault(name, []).append(label)
    labelled = [replace(scan, labels=_masks(scan, files, label_suffixes, layout == "bids")) for scan in wanted]
    if not any(scan.labels for scan in labelled):
        what = f"no label's name is an image's with {' or '.join(map(repr, label_suffixes))} added"
        raise DataError(folder, what, "correct --label-suffix, or leave it out for a domain without labels")
    return labelled


def _pairs(folder: Path) -> tuple[list[Scan], Found]:
    folders = [folder / name for name in LABEL_FOLDERS if (folder / name).is_dir()]
    if len(folders) > 1:
        what = f"has the folders {' and '.join(found.name for found in folders)}"
        raise DataError(folder, what, "keep one of them, so that it is clear which holds the labels")
    root = folder / "images"
    labels = [found for each in folders for found in find_images(each)]
    found = [*find_images(root)]
    named = {key for key, _ in labels}
    if all(key.endswith(FIRST) and key not in named for key, _ in found):  # nnU-Net's names in other folders
        found = [(key.removesuffix(FIRST), image) for key, image in found]
    return [Scan(key, image, patient=_owner(image, root)) for key, image in found], labels


def _nnunet(folder: Path) -> tuple[list[Scan], Found]:
    images = [
        Scan(_without_channel(key, image), image, patient=_owner(image, folder / name), test=name == "imagesTs")
        for name in ("imagesTr", "imagesTs")
        for key, image in find_images(folder / name)
    ]
    return images, [found for name in ("labelsTr", "labelsTs") for found in find_images(folder / name)]


def _bids(folder: Path) -> tuple[list[Scan], Found]:
    subjects = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    found = [(subject.name, key, image) for subject in subjects for key, image in find_images(subject)]
    images = [Scan(Path(key).name, image, patient=subject) for subject, key, image in found]
    return images, [(Path(key).name, label) for key, label in find_images(folder / "derivatives")]


def _refuse_contrasts(folder: Path, scans: Sequence[Scan]) -> None:
    """Refuse several contrasts of one patient, which nobody has chosen among."""
    contrasts: dict[str | None, set[str]] = {}
    for scan in scans:
        contrasts.setdefault(scan.patient, set()).add(scan.key.rpartition("_")[2])
    for patient, names in contrasts.items():
        if len(names) > 1:
            first = f"_{min(names)}"
            what = f"has {len(names)} contrasts of {patient}: {', '.join(sorted(names))}"
            raise DataError(folder, what, f"choose one, such as --image-suffix {first}")


def _plain(folder: Path) -> tuple[list[Scan], Found]:
    """Images anywhere in a folder; a name that goes on after an image's as labels' do is a label's."""
    found = [*find_images(folder)]
    names = {key for key, _ in found}
    labels = [(key, path) for key, path in found if (tail := LABEL_TAIL.search(key)) and key[: tail.start()] in names]
    taken = {key for key, _ in labels}
    return [Scan(key, image, patient=_owner(image, folder)) for key, image in found if key not in taken], labels


def _owner(image: Path, root: Path) -> str | None:
    """Whose a DICOM series is: all of a zipped study are one person's, and all below one folder of the images'."""
    packed = split_archive(image)
    if packed is not None:
        return packed[0].relative_to(root).parts[0].removesuffix(packed[0].suffix)
    return image.relative_to(root).parts[0] if image.is_dir() else None


def _without_channel(key: str, image: Path) -> str:
    channel = CHANNEL.fullmatch(key)
    if channel is None:
        return key
    if channel[2] != "0000":
        raise DataError(image, "is a further channel, garda reads one file per case", "merge channels along a 4th axis")
    return channel[1]


def _by_owner(images: set[str], labels: Found) -> dict[str, list[Path]]:
    """Label files by image: the longest image name that a label's name equals, or goes on after without a digit.

    So ``a_seg`` is a label of ``a``, and ``visit_1_2`` is none of ``visit_1``: it may be that of another visit.

    Labels of exactly the image's name stand alone where there are some.
    """
    exact: dict[str, list[Path]] = {}
    longer: dict[str, list[Path]] = {}
    for key, label in labels:
        ends = [end for end in range(1, len(key) + 1) if key[:end] in images and ADDED.fullmatch(key[end:])]
        if ends:
            (exact if ends[-1] == len(key) else longer).setdefault(key[: ends[-1]], []).append(label)
    return longer | exact


def _only_label(scan: Scan, files: Sequence[Path]) -> tuple[Path, ...]:
    if len(files) > 1:
        what = f"{len(files)} files could be its label ({', '.join(file.name for file in files)})"
        raise DataError(scan.image, what, "give the suffixes of the labels")
    return tuple(files)


def _masks(scan: Scan, files: Mapping[str, Sequence[Path]], suffixes: Sequence[str], bids: bool) -> tuple[Path, ...]:
    """The label files of every suffix, all or none; in BIDS a suffix may replace the last part of the image's name."""
    bases = [scan.key, scan.key.rpartition("_")[0]] if bids else [scan.key]
    found = {suffix: [file for base in bases for file in files.get(base + suffix, ())] for suffix in suffixes}
    if not any(found.values()):
        return ()
    for suffix, candidates in found.items():
        if not candidates:
            raise DataError(scan.image, f"its label {suffix!r} is missing", "add the file, or remove its other labels")
        if len(candidates) > 1:
            what = f"{len(candidates)} files could be its label {suffix!r}"
            raise DataError(scan.image, what, "keep one of them below the folder")
    return tuple(candidates[0] for candidates in found.values())


def find_left(folder: Path, taken: Iterable[Path]) -> list[str]:
    """What nobody takes of a folder's files, hidden ones apart: a line each, with the reason.

    Args:
        folder: is searched, linked folders included.
        taken: images and labels: files, folders that are a DICOM series, or parts of zip files.
    """
    used = {(split_archive(path) or (path,))[0] for path in taken}
    left = []
    for path in sorted(_walk(folder)):
        if path.name.startswith(".") or path.is_dir() or not used.isdisjoint((path, *path.parents)):
            continue
        known = readers.split_name(path)[1] or path.suffix.lower() == ARCHIVE
        why = "leads nowhere" if not path.exists() else "belongs to no case" if known else "is of no known format"
        left.append(f"{shown(path.relative_to(folder))} {why}")
    return left


def tell_left(left: Sequence[str], strict: bool, where: Path) -> list[str]:
    """Lines on what has been left out: the first ten by name, the rest as a number.

    Raises:
        DataError: there is something, and nothing may be.
    """
    if strict and left:
        raise DataError(where, f"{len(left)} files would be left out, such as {left[0]}", "take them out of the folder")
    more = [f"and {len(left) - MOST} more"] if len(left) > MOST else []
    return [*(f"left out: {line}" for line in left[:MOST]), *more]


def shown(path: Path) -> str:
    """A path for messages, whatever its bytes.

    >>> shown(Path("M\\udcfcller.nii"))
    'M\\\\udcfcller.nii'
    """
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _require_utf8(path: Path) -> None:
    if shown(path) != path.as_posix():
        raise DataError(shown(path), "has a name that is no UTF-8", "rename it")


def _walk(root: Path) -> Iterator[Path]:
    """Everything below a folder, linked folders too but for those that lead back up; OSError where it cannot look."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, below, names in os.walk(root, followlinks=True, onerror=refuse) if root.exists() else ():
        above = os.path.realpath(parent) + os.sep
        real = {name: os.path.realpath(os.path.join(parent, name)) + os.sep for name in below}
        below[:] = [name for name in below if not above.startswith(real[name])]
        yield from (Path(parent, name) for name in (*below, *names))


def find_images(root: Path) -> Iterator[tuple[str, Path]]:
    """(path below ``root`` without suffix, path) of every image file, DICOM series folder and zipped series, sorted.

    Raises:
        DataError: a zip file is damaged or encrypted.
        OSError: a folder may not be listed, or a file not be opened.
    """
    for path in sorted(_walk(root)):
        _require_utf8(path)
        name, suffix = readers.split_name(path)
        key = path.relative_to(root).with_name(name)
        if name.startswith("."):
            continue
        if path.suffix.lower() == ARCHIVE and path.is_file():
            folders = dicom_zip.archived_folders(ScanFile(path, "scan", str(path)))
            for folder in folders:  # which is named where there is a choice
                within = folder if len(folders) > 1 else ""
                yield (key.with_suffix("") / within).as_posix(), path / within
        elif dicom.is_series(path) if path.is_dir() else suffix and path.is_file():
            yield key.as_posix(), path
