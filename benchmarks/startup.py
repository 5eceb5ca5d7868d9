"""How long the command line takes before it does anything, and how fast `garda check` reads.

    python -m benchmarks.startup [--images 1000] [--volumes 20] [--runs 5] [--json FILE]

Times whole processes: `garda --help`, `garda check` on pictures of 256 x 256 with digests, and on volumes of
256 x 256 x 100 with digests, these also against reading and decoding the same files without a check.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

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
        pictures = write_scans(Path(made, "pictures"), "pictures", given.images)
        found["pictures"] = time_command(["check", str(pictures), "--data", str(Path(made, "pictures", "data"))], 1)
        print(f"garda check, {given.images} pictures of {SIDE} x {SIDE}: {found['pictures']:.1f} s")
        data = Path(made, "volumes", "data")
        volumes = write_scans(data.parent, "volumes", given.volumes)
        empty = time_command(["check", "--help"], 1)
        plain, size = read_plainly(data)
        found["volumes"] = time_command(["check", str(volumes), "--data", str(data)], 1)
        found["volumes_plainly"], found["volumes_bytes"] = plain, size
        rates = [f"{size / 1e6 / seconds:.0f} MB/s" for seconds in (found["volumes"] - empty, plain)]
        print(f"garda check, {given.volumes} volumes: {found['volumes']:.1f} s, {rates[0]}; reading alone {rates[1]}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
