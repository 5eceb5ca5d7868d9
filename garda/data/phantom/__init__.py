"""The embedded data set: a physically based magnetic resonance phantom of the heart in short-axis slices.

    {physics, anatomy} <- scanner <- write_phantom

Four sites scan different random people with different sequences and scanners
(:data:`garda.data.phantom.scanner.SITES`), so that a segmenter of one site fails on others for the reasons for which it
fails in hospitals: another contrast, another resolution, other noise, shading and windowing.
"""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from garda.core import files
from garda.core.errors import ConfigError, DataError
from garda.data import manifest
from garda.data.manifest import SPLITS, Case, Split
from garda.data.phantom.anatomy import CLASSES, Map, Person
from garda.data.phantom.scanner import SITES, Scanner, acquire

PATIENTS: Mapping[Split, int] = {"train": 16, "val": 2, "test": 8}
TASK = {
    "name": "heart_phantom",
    "classes": list(CLASSES),
    "channels": 1,
    "size": [64, 64],
    "spacing_mm": [2.5, 2.5],
    "fit": "crop",
    "plane": "axial",
    "codes": {
        "right_ventricle": {"value": "53085002", "meaning": "Right ventricle"},
        "myocardium": {"value": "49848007", "meaning": "Left Ventricle Myocardium"},
        "left_ventricle": {"value": "87878005", "meaning": "Left ventricle"},
    },
}


def write_phantom(
    out: Path,
    *,
    seed: int = 0,
    patients: Mapping[Split, int] | None = None,
    sites: Sequence[str] | None = None,
    slices: int = 6,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the phantom: ``out/<site>/{images,labels}/<case>.nii.gz`` and ``out/manifests``.

    Images are int16 with the site's own spacing and orientation, labels uint8 class indices on the same grid. Every
    patient depends on seed, site and patient number alone, so that fewer sites or patients leave the others as they
    are. The folder appears under its name when everything is written.

    Args:
        out: a new or an empty folder.
        seed: not negative.
        patients: number of patients a site in each split; 16 train, 2 val and 8 test if not given.
        sites: names from :data:`garda.data.phantom.scanner.SITES`; all if not given.
        slices: slices a patient, at least 1.
        progress: called with (patients done, patients in all) after each patient.

    Returns:
        The folder of ``task.yaml`` and one CSV a site.

    Raises:
        DataError: ``out`` is not empty.
        ConfigError: an unknown site, or a number that is too small.
        RunFolderError: ``out`` cannot be written.
    """
    names = tuple(SITES) if sites is None else tuple(sites)
    counts = {split: (PATIENTS if patients is None else patients).get(split, 0) for split in SPLITS}
    _check(names, counts, seed, slices)
    plan = {name: list_cases(name, counts) for name in names}
    people = [(name, number, case) for name, cases in plan.items() for number, case in enumerate(cases)]
    with files.writing(out):
        if out.exists() and any(out.iterdir()):
            raise DataError(out, "the folder is not empty", "give a new folder")
    with files.replacing_folder(out) as draft:
        write = partial(_write_case, draft, seed, slices)
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # numpy and scipy compute without Python's lock
            for done, _ in enumerate(threads.map(write, *zip(*people, strict=True)), start=1):
                if progress is not None:
                    progress(done, len(people))
        write_manifests(draft / "manifests", plan)
    return out / "manifests"


def list_cases(site: str, patients: Mapping[Split, int]) -> tuple[Case, ...]:
    """The manifest rows of one site: numbered patients, train before val before test.

    >>> [(case.case, case.split) for case in list_cases("gre_3t", {"train": 1, "val": 0, "test": 1})]
    [('gre_3t_000', 'train'), ('gre_3t_001', 'test')]

    Raises:
        KeyError: ``patients`` lacks a split.
    """
    cases = []
    for number, split in enumerate(part for part in SPLITS for _ in range(patients[part])):
        name = f"{site}_{number:03d}"
        image, label = (f"{site}/{kind}/{name}.nii.gz" for kind in ("images", "labels"))
        cases.append(Case(name, name, split, image, (label,), (), f"{site}.csv"))
    return tuple(cases)


def write_manifests(folder: Path, sites: Mapping[str, Sequence[Case]]) -> None:
    """Write ``task.yaml`` and one CSV a site. Digests are left out: last bits may differ between machines.

    Args:
        folder: where to; made where it is missing.
        sites: rows of each manifest by the site's name, see :func:`list_cases`.

    Raises:
        RunFolderError: a manifest cannot be written.
        OSError: ``task.yaml`` cannot be written.
    """
    for name, cases in sites.items():
        manifest.write_manifest(folder / f"{name}.csv", cases)
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK, sort_keys=False, default_flow_style=None), encoding="utf-8")


def _check(names: Sequence[str], patients: Mapping[Split, int], seed: int, slices: int) -> None:
    for name in names:
        if name not in SITES:
            raise ConfigError("phantom", f"unknown site {name!r}", f"known sites are {', '.join(SITES)}")
    for what, value, least in (("seed", seed, 0), ("slices", slices, 1), ("patients", min(patients.values()), 0)):
        if value < least:
            raise ConfigError("phantom", f"{what} is {value}", f"give at least {least}")


def _write_case(folder: Path, seed: int, slices: int, site: str, number: int, case: Case) -> None:
    random = np.random.default_rng(np.random.SeedSequence((seed, zlib.crc32(site.encode()), number)))
    image, label = acquire(Person.draw(random), SITES[site], slices, random)
    _write_nifti(folder / case.image, image, SITES[site])
    _write_nifti(folder / case.labels[0], label, SITES[site])


def _write_nifti(path: Path, volume: NDArray[np.int16] | Map, scanner: Scanner) -> None:
    """Write (D, H, W) with columns to the left, rows to the back and slices down, in the scanner's orientation."""
    import nibabel

    spacing = np.array([scanner.spacing, scanner.spacing, scanner.thickness])
    affine = np.diag([*-spacing, 1.0])  # NIfTI's world runs right, forward, up
    affine[:3, 3] = spacing * (np.array(volume.shape[::-1]) - 1) / 2
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    stored = nibabel.orientations.axcodes2ornt(scanner.axes)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), stored))
    image.set_qform(image.affine, code="scanner")
    image.set_sform(image.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
