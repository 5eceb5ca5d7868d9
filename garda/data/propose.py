"""A project proposed from folders of scans: manifests, task and pipeline, each proposal with its reason."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel import orientations
from nibabel.affines import voxel_sizes

from garda.core import files
from garda.core.errors import DataError, RunFolderError
from garda.data import dicom, dicom_zip, layouts, manifest, propose_task, readers
from garda.data.build_manifest import make_cases
from garda.data.layouts import Scan
from garda.data.propose_task import Site
from garda.data.scan import ScanFile, cannot_read, split_archive

SAMPLE = 10_000  # voxels of a scan's foreground
VISIT = re.compile(r"^(.+?)[_-](ses|visit|v|frame|time|tp|t|scan|run|phase|slice|day|acq|echo|rep)[-_]?\d\w*$", re.I)


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
    task, asked = propose_task.write_task([source, *sites], folders[0])
    with files.replacing_folder(out) as draft:
        for site in (source, *sites):
            cases = make_cases(site.scans, site.patients, root)
            manifest.write_manifest(draft / "manifests" / f"{site.name}.csv", cases)
            lines.append(f"{site.name}: {len(cases)} scans of {len(set(site.patients))} patients; {site.evidence}")
            asked += site.asked
        (draft / "manifests" / "task.yaml").write_text(task, encoding="utf-8")
        for site, codes in propose_task.site_codes(source, sites):
            (draft / "manifests" / f"{site.name}.yaml").write_text(codes, encoding="utf-8")
            asked.append(f"manifests/{site.name}.yaml: which class is each of its codes?")
        (draft / "pipeline.yaml").write_text(
            propose_task.pipeline(out.name, source, sites, max(labelled)), encoding="utf-8"
        )
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
    site.lowest.append(float(image.pixels.min()))
    axes, sizes = [0, 1, 2], np.ones(3)
    if image.header is not None:
        axes = [int(axis) for axis in orientations.io_orientation(image.affine)[:, 0]]
        sizes = voxel_sizes(image.affine)
        site.spacings.append(sizes[np.argsort(axes)])
    for label in scan.labels:
        pixels = readers.read_stored(ScanFile(label, "label", str(label)), palette=True).pixels[..., 0]
        site.values |= {int(value) for value in np.unique(np.rint(pixels))}
        if pixels.shape == image.pixels.shape[:3]:
            marked = image.pixels[..., 0][pixels > 0]
            site.inside.append(marked[:: max(1, len(marked) // SAMPLE)])
        for own, axis in enumerate(axes):
            counts = (pixels > 0).sum(tuple(other for other in range(3) if other != own))
            away = np.abs(np.arange(len(counts)) - (len(counts) - 1) / 2) * sizes[own]
            site.reach[axis].append((away, counts))


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
