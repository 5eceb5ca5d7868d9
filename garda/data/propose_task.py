"""The texts of a proposed project: task, a site's own codes and pipeline, each line with its reason."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from garda.core import files
from garda.core.errors import DataError
from garda.data import orientation
from garda.data.layouts import Scan

KEPT = 0.995  # of the foreground along rows, and along columns, so that both together keep 99 %
LARGEST = 256  # pixels of a side that is learnt whole; what needs more is learnt in patches
AIR = -900.0  # Hounsfield units; a scan whose least value is below is CT
THICK = 1.2  # times the spacing of the other axes, from which slices lie across an axis
SLICES = ("sagittal", "coronal", "axial")  # by the world axis that slices follow


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
        lowest: intensity of each scan.
        inside: intensities of each scan's foreground, a sample.
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
    lowest: list[float] = field(default_factory=list)
    inside: list[np.ndarray] = field(default_factory=list)
    reach: dict[int, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=lambda: {0: [], 1: [], 2: []})
    asked: list[str] = field(default_factory=list)


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


def write_task(sites: Sequence[Site], where: Path) -> tuple[str, list[str]]:
    """The text of task.yaml, and what it leaves open.

    Raises:
        DataError: no label of the source marks anything.
    """
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
    if (window := _window(sites)) is not None:
        why = "0.5 and 99.5 % of the source's foreground, in Hounsfield units"
        lines.append(f"intensity: {{window: [{window[0]:g}, {window[1]:g}]}}  # CT; {why}")
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


def _window(sites: Sequence[Site]) -> tuple[float, float] | None:
    """The window of a task whose sites are all CT, by dataset.json or by values of air; as nnU-Net clips CT."""
    said = {name for site in sites for scan in site.scans for name in _channel_names(scan.image.parent.parent)}
    lowest = [float(np.median(site.lowest)) for site in sites]
    if not (said == {"CT"} or max(lowest) <= AIR) or not sites[0].inside:
        return None
    low, high = np.percentile(np.concatenate(sites[0].inside), [0.5, 99.5])
    return (float(np.floor(low)), float(np.ceil(high))) if low < high else None


def _channel_names(folder: Path) -> set[str]:
    """What nnU-Net's dataset.json calls the channels, by either of its words."""
    if not (folder / "dataset.json").is_file():
        return set()
    known = files.read_json(folder / "dataset.json")
    named = known.get("channel_names") or known.get("modality") or {}
    return {str(name).upper() for name in named.values()}


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


def site_codes(source: Site, sites: Sequence[Site]) -> list[tuple[Site, str]]:
    """Texts of the files for sites whose codes are not the source's."""
    wanted, found = sorted(source.values - {0}), []
    for site in sites:
        own = sorted(site.values - {0})
        if not set(own) <= set(wanted):
            pairs = itertools.zip_longest(own, range(1, len(wanted) + 1))
            values = ", ".join(f"{code}: {number or 0}" for code, number in pairs if code is not None)
            found.append((site, f"values: {{{values}}}  # ? code -> index of its class; taken in their order\n"))
    return found


def pipeline(name: str, source: Site, targets: Sequence[Site], labelled: int) -> str:
    """The text of pipeline.yaml."""
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
