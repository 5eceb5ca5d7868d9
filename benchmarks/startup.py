"""How long the command line takes before it does anything, and how fast `garda check` reads.

    python -m benchmarks.startup [--images 1000] [--volumes 20] [--runs 5] [--json FILE]

Times whole processes: `garda --help`, and `garda check` on pictures of 256 x 256 with digests. Then, without the start,
what the check of volumes of 256 x 256 x 100 with digests takes the first time and the second, when no file is hashed,
against reading and decoding the same files without a check. The user's own key folder is left alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from rich.console import Console

from garda.checks import check
from garda.digests import SETTLED_SECONDS
from garda.report import Reporter
from garda.sequence import read_sequence

SIDE, DEPTH = 256, 100
SPLITS = ("train", "train", "test")
TASK = """
name: startup
classes: [background, disc]
size: [64, 64]
fit: patch
plane: axial
"""
PIPELINE = "{{name: startup, manifests: {folder}, source: site, targets: [], config: {config}, method: source_only}}\n"


def write_scans(folder: Path, kind: str, count: int) -> Path:
    """A data folder with ``count`` scans, their labels and a manifest with digests; returns the pipeline file."""
    random = np.random.default_rng(0)
    inside = np.hypot(*(np.indices((SIDE, SIDE)) - SIDE / 2)) < SIDE / 4
    (folder / "data").mkdir(parents=True)
    (folder / "manifests").mkdir()
    rows = []
    for index in range(count):
        row: dict[str, str | int] = {"case": f"c{index}", "patient": f"p{index}", "split": SPLITS[index % 3]}
        for column in ("image", "label"):
            file = folder / "data" / f"{column}_{index}.{'png' if kind == 'pictures' else 'nii'}"
            shape = (SIDE, SIDE) if kind == "pictures" else (SIDE, SIDE, DEPTH)
            mask = inside if kind == "pictures" else np.repeat(inside[..., None], DEPTH, axis=2)
            noise = random.integers(0, 100, shape, np.uint8)
            array = (noise + 100 * mask if column == "image" else mask).astype(np.uint8)
            if kind == "pictures":
                Image.fromarray(array).save(file)
            else:
                nib.save(nib.Nifti1Image(array, np.eye(4)), file)
            row[column] = file.name
            row[f"{column}_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            row[f"{column}_bytes"] = file.stat().st_size
        rows.append(row)
    with (folder / "manifests" / "site.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "manifests" / "task.yaml").write_text(TASK)
    config = Path(__file__).parents[1] / "configs" / "small.yaml"
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(PIPELINE.format(folder=folder / "manifests", config=config))
    return pipeline


def time_command(words: list[str], runs: int) -> float:
    """Median seconds of a whole process of garda's."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name("garda")), *words], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def read_plainly(data: Path) -> tuple[float, int]:
    """Seconds of reading and decoding every file once, and their bytes."""
    started = time.perf_counter()
    for file in data.iterdir():
        np.asarray(nib.load(file, mmap=False).dataobj)
    return time.perf_counter() - started, sum(file.stat().st_size for file in data.iterdir())


def time_volumes(folder: Path, count: int) -> dict[str, float]:
    """Seconds of checking volumes twice and of reading them plainly, and their bytes; prints them as rates.

    In this process, so that no start is among them.
    """
    sequence = read_sequence(write_scans(folder, "volumes", count))
    time.sleep(SETTLED_SECONDS + 1)  # younger files are always hashed
    plain, size = read_plainly(folder / "data")
    found = {"volumes_plainly": plain}
    for name in ("volumes", "volumes_again"):
        started = time.perf_counter()
        check(sequence, folder / "data", sequence.source.cases, Reporter(Console(quiet=True)))
        found[name] = time.perf_counter() - started
    named = ("read plainly", "garda check, first time", "garda check, second time")
    for name, seconds in zip(named, found.values(), strict=True):
        print(f"{name}, {count} volumes: {seconds:.2f} s, {size / 1e6 / seconds:.0f} MB/s")
    return found | {"volumes_bytes": size}


def main() -> None:
    """Measure, print, and write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {"help": time_command(["--help"], given.runs)}
    print(f"garda --help: {found['help']:.2f} s")
    with tempfile.TemporaryDirectory() as made:
        os.environ["GARDA_HOME"] = str(Path(made, "home"))
        pictures = write_scans(Path(made, "pictures"), "pictures", given.images)
        found["pictures"] = time_command(["check", str(pictures), "--data", str(Path(made, "pictures", "data"))], 1)
        print(f"garda check, {given.images} pictures of {SIDE} x {SIDE}: {found['pictures']:.1f} s")
        found |= time_volumes(Path(made, "volumes"), given.volumes)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
