"""A project proposed from folders of scans: manifests, task and pipeline, each proposal with its reason."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from nibabel import orientations
from nibabel.affines import voxel_sizes

from garda.core import files
from garda.core.errors import DataError, RunFolderError
from garda.data import dicom, dicom_zip, layouts, manifest, orientation, readers
from garda.data.build_manifest import make_cases
from garda.data.layouts import Scan
from garda.data.scan import ScanFile, cannot_read, split_archive

KEPT = 0.995  # of the foreground along rows, and along columns, so that both together keep 99 %
LARGEST = 256  # pixels of a side that is learnt whole; what needs more is learnt in patches
THICK = 1.2  # times the spacing of the other axes, from which slices lie across an axis
SLICES = ("sagittal", "coronal", "axial")  # by the world axis that slices follow
VISIT = re.compile(r"^(.+?)[_-](ses|visit|v|frame|time|tp|t|scan|run|phase|slice|day|acq|echo|rep)[-_]?\d\w*$", re.I)


@dataclass
class Site:
    """One folder of scans.

    Attributes:
        name: the domain's.
        scans: images with their labels.
        patients: whose each scan is.
        evidence: what says so.
        spacings: of each scan, mm along right, anterior, superior; none of pictures.
        channels: most that a scan has.
        values: of all label maps.
        reach: of all foreground, by axis: distance from its scan's middle (mm; pixels of a picture), and voxels.
        asked: what cannot be known, a line each.
    """

    name: str
    scans: list[Scan]
    patients: list[str]
    evidence: str
    spacings: list[np.ndarray] = field(default_factory=list)
    channels: int = 1
    values: set[int] = field(default_factory=set)
    reach: dict[int, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=lambda: {0: [], 1: [], 2: []})
    asked: list[str] = field(default_factory=list)


def propose(folders: Sequence[Path], out: Path, image_suffix: str = "") -> tuple[Path, list[str]]:
    """Write a project for some sites; the first with the most labelled scans is the source.

    Args:
        folders: one for each site.
        out: the project's folder, which is new.
        image_suffix: only images whose name ends so, see :func:`garda.data.build_manifest.build_manifest`.

    Returns:
        the folder that the manifests' paths are relative to, and what was found and what is asked, a line each.

    Raises:
        DataError: a folder holds no scan, two cannot be told apart, no scan has a label, or a file cannot be read.
        RunFolderError: the project's folder exists, or cannot be written.
    """
    if out.exists():
        raise RunFolderError(out, "exists already", "give another --out, or remove it")
    root = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    sites = [_read_site(folder, root, folders, image_suffix) for folder in folders]
    labelled = [sum(bool(scan.labels) for scan in site.scans) for site in sites]
    if not any(labelled):
        raise DataError(folders[0], "and all other folders hold no label", "a source needs one for each scan")
    source = sites.pop(labelled.index(max(labelled)))
    unlabelled = [scan for scan in source.scans if not scan.labels and not scan.test]
    lines = [f"left out: {layouts.shown(scan.image)} has no label, and the source needs one" for scan in unlabelled]
    kept = [pair for pair in zip(source.scans, source.patients, strict=True) if pair[0] not in unlabelled]
    source.scans, source.patients = [scan for scan, _ in kept], [patient for _, patient in kept]
    task, asked = _write_task([source, *sites], folders[0])
    with files.replacing_folder(out) as draft:
        for site in (source, *sites):
            cases = make_cases(site.scans, site.patients, root)
            manifest.write_manifest(draft / "manifests" / f"{site.name}.csv", cases)
            lines.append(f"{site.name}: {len(cases)} scans of {len(set(site.patients))} patients; {site.evidence}")
            asked += site.asked
        (draft / "manifests" / "task.yaml").write_text(task, encoding="utf-8")
        for site, codes in _site_codes(source, sites):
            (draft / "manifests" / f"{site.name}.yaml").write_text(codes, encoding="utf-8")
            asked.append(f"manifests/{site.name}.yaml: which class is each of its codes?")
        (draft / "pipeline.yaml").write_text(_pipeline(out.name, source, sites, max(labelled)), encoding="utf-8")
    return root, [*lines, *(f"asked: {line}" for line in asked)]


def _read_site(folder: Path, root: Path, folders: Sequence[Path], image_suffix: str) -> Site:
    try:
        known = any(each.is_dir() for sign in layouts.SIGNS.values() for each in folder.glob(sign))
        layout = layouts.recognise_layout(folder) if known or not folder.is_dir() else "plain"
        scans = layouts.find_scans(folder.resolve(), layout, image_suffix if layout == "bids" else "", ())
        alike = sum(other.resolve().name == folder.resolve().name for other in folders) > 1
        parts = folder.resolve().relative_to(root).parts if alike else (folder.resolve().name,)
        site = Site(re.sub(r"[^A-Za-z0-9_.-]", "-", "_".join(parts)).lstrip("_.-") or "site", scans, [], "")
        site.patients, site.evidence, sure = find_patients(scans)
        if not sure:
            site.asked.append(f"manifests/{site.name}.csv: is every scan of a patient of its own? edit column patient")
        for scan in scans:
            _measure(scan, site)
    except OSError as error:
        raise DataError(error.filename or folder, *cannot_read(error)) from None
    return site


def find_patients(scans: Sequence[Scan]) -> tuple[list[str], str, bool]:
    """Whose each scan is, what says so, and whether that is sure.

    No header's words are written: scans of one PatientID are named by the first of them.

    >>> find_patients([Scan("p1_ses-1", Path("a")), Scan("p1_ses-2", Path("b")), Scan("p2_ses-1", Path("c"))])
    (['p1', 'p1', 'p2'], 'patients by file name, such as p1 of p1_ses-1', True)
    """
    identities = [patient_id(scan.image) if dicom.is_dicom(scan.image) else "" for scan in scans]
    if all(identities) and (len(set(identities)) > 1 or len(scans) == 1):
        names: dict[str, str] = {}
        return (
            [names.setdefault(own, scan.key) for own, scan in zip(identities, scans, strict=True)],
            ("patients by DICOM's PatientID, each named by the first scan"),
            True,
        )
    if all(scan.patient for scan in scans):
        return [scan.patient or scan.key for scan in scans], "patients by folder", True
    if all("/" in scan.key for scan in scans):
        return [scan.patient or scan.key.split("/")[0] for scan in scans], "patients by folder", True
    found = [VISIT.match(scan.key) for scan in scans]
    named = [match[1] if match else scan.key for match, scan in zip(found, scans, strict=True)]
    for match in found:
        if match:
            return named, f"patients by file name, such as {match[1]} of {match[0]}", True
    return named, "every scan counts as a patient of its own", False


def _measure(scan: Scan, site: Site) -> None:
    """Take down what a scan's header and labels say."""
    image = readers.read_stored(ScanFile(scan.image, "image", str(scan.image)))
    site.channels = max(site.channels, image.pixels.shape[3])
    axes, sizes = [0, 1, 2], np.ones(3)
    if image.header is not None:
        axes = [int(axis) for axis in orientations.io_orientation(image.affine)[:, 0]]
        sizes = voxel_sizes(image.affine)
        site.spacings.append(sizes[np.argsort(axes)])
    for label in scan.labels:
        pixels = readers.read_stored(ScanFile(label, "label", str(label)), palette=True).pixels[..., 0]
        site.values |= {int(value) for value in np.unique(np.rint(pixels))}
        for own, axis in enumerate(axes):
            counts = (pixels > 0).sum(tuple(other for other in range(3) if other != own))
            away = np.abs(np.arange(len(counts)) - (len(counts) - 1) / 2) * sizes[own]
            site.reach[axis].append((away, counts))


def _needed(sites: Sequence[Site], axis: int, spacing: float) -> int:
    """Pixels along an axis that keep the foreground of each site, a multiple of 16."""
    most = 16.0
    for site in (each for each in sites if each.reach[axis]):
        away, counts = (np.concatenate(part) for part in zip(*site.reach[axis], strict=True))
        order = np.argsort(away)
        share = np.cumsum(counts[order]) / max(1, counts.sum())
        most = max(most, 2 * float(away[order][min(int(np.searchsorted(share, KEPT)), len(away) - 1)]) / spacing + 3)
    return 16 * math.ceil(most / 16)


def _class_names(sites: Sequence[Site]) -> tuple[dict[int, str], str]:
    """Foreground codes of the source with the classes' names, and where these come from."""
    for site in sites:
        for folder in {scan.image.parent.parent for scan in site.scans}:
            if (folder / "dataset.json").exists():
                labels = files.read_json(folder / "dataset.json").get("labels", {})
                pairs = [(key, value) if str(key).isdecimal() else (value, key) for key, value in labels.items()]
                named = {int(code): str(name) for code, name in pairs if str(code).isdecimal() and int(code) > 0}
                if site.values <= {0, *named}:
                    return dict(sorted(named.items())), f"names of {site.name}'s dataset.json"
    codes = sorted(sites[0].values - {0})
    return {code: f"class_{number}" for number, code in enumerate(codes, 1)}, ""


def _write_task(sites: Sequence[Site], where: Path) -> tuple[str, list[str]]:
    """The text of task.yaml, and what it leaves open."""
    source, asked = sites[0], []
    named, whence = _class_names(sites)
    if not named:
        raise DataError(where, "no label of the source marks anything", "give labels with a class")
    if not whence:
        asked.append("manifests/task.yaml: what are the classes called?")
    names = json.dumps(["background", *named.values()], ensure_ascii=False)
    lines = ["# Proposed by garda init; every line says why. Lines marked `# ?` are for you to answer.", "name: task"]
    lines.append(f"classes: {names}  # {whence or '? numbered by their codes, name them'}")
    if [*named] != [*range(1, len(named) + 1)]:
        values = ", ".join(f"{code}: {number}" for number, code in enumerate(named, 1))
        lines.append(f"label: {{values: {{{values}}}}}  # the source's codes, in their order")
    if codes := _codes(named.values()):
        lines += ["codes:  # from DICOM's dictionary, by name; look whether they are meant", *codes]
    colour = max(site.channels for site in sites) == 3
    lines += ["channels: 3  # some scans are in colour"] if colour else []
    if not source.spacings:
        lines += ["any_orientation: true  # pictures have no up and down"]
        rows, columns, spacing = 1, 0, (1.0, 1.0)
    else:
        median = np.median(source.spacings, axis=0)
        across = int(median.argmax()) if median.max() > THICK * np.sort(median)[1] else 2
        spacings = " x ".join(f"{each:.4g}" for each in median)
        lines.append(f"plane: {SLICES[across]}  # the source's voxels are {spacings} mm (right, anterior, superior)")
        axes = {"L": 0, "P": 1, "I": 2}
        columns, rows = (axes[letter] for letter in orientation.PLANES[SLICES[across]][:2])
        spacing = float(f"{median[rows]:.4g}"), float(f"{median[columns]:.4g}")
        lines.append(f"spacing_mm: [{spacing[0]}, {spacing[1]}]  # median of the source, rows and columns")
    size = [_needed(sites, axis, each) for axis, each in zip((rows, columns), spacing, strict=True)]
    why = "keeps at least 99 % of the labelled foreground of every site"
    if max(size) > LARGEST:
        why = f"of patches: to keep 99 % of the foreground, slices would have {size[0]} x {size[1]} pixels"
        size = [min(side, LARGEST) for side in size]
        lines.append("fit: patch  # the foreground is too large to be learnt whole")
    lines.append(f"size: [{size[0]}, {size[1]}]  # {why}")
    return "\n".join([*lines, ""]), asked


def _codes(names: Iterable[str]) -> list[str]:
    """Lines with the concepts that DICOM's dictionary has of some names."""
    from pydicom.sr.codedict import codes

    lines = []
    for name in names:
        keyword = "".join(part.capitalize() for part in re.split(r"[\W_]+", name))
        known = getattr(codes.SCT, keyword, None) if keyword in dir(codes.SCT) else None
        if known is not None:
            concept = {"value": known.value, "meaning": known.meaning}
            lines.append(f"  {json.dumps(name)}: {json.dumps(concept)}")
    return lines


def _site_codes(source: Site, sites: Sequence[Site]) -> list[tuple[Site, str]]:
    """Texts of the files for sites whose codes are not the source's."""
    wanted, found = sorted(source.values - {0}), []
    for site in sites:
        own = sorted(site.values - {0})
        if not set(own) <= set(wanted):
            pairs = itertools.zip_longest(own, range(1, len(wanted) + 1))
            values = ", ".join(f"{code}: {number or 0}" for code, number in pairs if code is not None)
            found.append((site, f"values: {{{values}}}  # ? code -> index of its class; taken in their order\n"))
    return found


def _pipeline(name: str, source: Site, targets: Sequence[Site], labelled: int) -> str:
    return "\n".join(
        [
            f"name: {json.dumps(re.sub(r'[^A-Za-z0-9_.-]', '-', name))}",
            "manifests: manifests  # with splits by patient, 60/10/30 % by seed 0",
            f"source: {source.name}  # most labelled scans: {labelled}; {source.evidence}",
            f"targets: [{', '.join(site.name for site in targets)}]  # in the order in which they were given",
            "config: small  # ships with garda; trains on two CPU cores",
            "method: garda  # chooses for each site among networks that the source has taught",
            "seed: 0",
            "",
        ]
    )


def patient_id(path: Path) -> str:
    """The PatientID of a series, by which scans are put together and which nobody writes; empty where it has none.

    Raises:
        DataError: a zip file cannot be unpacked.
    """
    import pydicom

    file, packed = ScanFile(path, "image", str(path)), split_archive(path)
    with files.private_temporary_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote what is in a header
        if packed is not None:
            dicom_zip.unpack(file, *packed, folder)
        found = dicom.dicom_files(file, folder if packed else path)
        headers = [pydicom.dcmread(each, stop_before_pixels=True, specific_tags=["PatientID"]) for each in found[:1]]
    return str(headers[0].get("PatientID") or "").strip() if headers else ""
