"""Tiny data sets and runs."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.data import phantom
from garda.data.sequence import DomainSequence, read_sequence
from garda.evaluation.metrics import Score
from garda.runs import predict as predicting
from garda.runs.context import Run
from garda.runs.run import run_sequence
from garda.runs.tracking import InMemory, Tracker

SITES = ("bssfp_1p5t", "tse_1p5t", "lge_3t")
TINY = """
name: tiny
manifests: data/manifests
source: bssfp_1p5t
targets: [tse_1p5t, lge_3t]
config: tiny.yaml
method: garda_paper
"""
CONFIG = """
compute: {accelerator: cpu, precision: "32"}
segmenter: {widths: [4, 4, 4, 4, 4, 4]}
source: {steps: 5, batch: 4, warm_up: 0, average: 2, randomisation: {}, stopping: {every: 2, least: 4, patience: 2}}
gate:  # networks of five steps recognise nothing
  sample: 4
  slices: [2, 1]
  recognition: [-1, -1]
  agreement: [0, 0]
  replay: [0, 0]
  diversity: [0, 0]
  style: [1, 1]
  foreground: [1.0e+9, 1.0e+9]
advent: {steps: 4, batch: 4, widths: [4, 8], anatomies: 8}
adabn: {batches: 3, batch: 4}
tent: {steps: 4, batch: 4, batches: 3}
joint: {steps: 4, batch: 4}
cotta: {steps: 4, batch: 4}
fda_replay: {batches: 2, anatomies: 8, replay: {steps: 4, batch: 4}}
supervised: {steps: 4}
generator:
  network: {code: 2, appearance: 3, widths: [4, 8], prior_width: 8}
  reconstruction: {steps: 3, batch: 4}
  prior: {steps: 3, batch: 4}
  style: {steps: 3, batch: 4, estimate: 2}
garda:
  choice: {slices: 4, views: 1}
  lesson: {steps: 3, batch: 4, pool: 4, views: 1, enough: 1.0, gain: 0.0}
garda_paper:
  network: {latent: 8, widths: [[8], [8], [4], [4]]}
  images: {steps: 4, batch: 4, widths: [4, 8, 8, 8], average_images: 16}
  style: {steps: 4, batch: 4, widths: [8, 8], average_images: 16}
  replay: {steps: 3, batch: 4}
"""


def write_tiny(folder: Path) -> Path:
    """A data set of three sites with a pipeline of seconds; returns the pipeline file."""
    patients = {"train": 2, "val": 1, "test": 1}
    phantom.write_phantom(folder / "data", patients=patients, sites=SITES, slices=2)  # type: ignore[arg-type]
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "pipeline.yaml").write_text(TINY)
    return folder / "pipeline.yaml"


def copy(pipeline: Path, folder: Path) -> Path:
    """A copy of a data set and its pipeline, for a test that changes it; returns the pipeline."""
    return Path(shutil.copytree(pipeline.parent, folder)) / pipeline.name


def other_words(pipeline: Path, folder: Path, old: str, new: str) -> Path:
    """A pipeline in ``folder`` over the same data and settings, with ``new`` in place of ``old``."""
    folder.mkdir(exist_ok=True)
    for name in ("data", "tiny.yaml"):
        (folder / name).symlink_to(pipeline.parent / name)
    (folder / pipeline.name).write_text(pipeline.read_text().replace(old, new))
    return folder / pipeline.name


def manifest(pipeline: Path, site: int) -> Path:
    return pipeline.parent / "data" / "manifests" / f"{SITES[site]}.csv"


def image(pipeline: Path, site: int, number: int = 0) -> Path:
    """A scan of a site: 0 and 1 are for training, 3 is for tests."""
    return pipeline.parent / "data" / SITES[site] / "images" / f"{SITES[site]}_{number:03d}.nii.gz"


def quiet() -> Console:
    return Console(RichConsole(quiet=True))


def run_tiny(
    pipeline: Path, out: Path, tracker: Tracker | None = None, stopping: Stopping | None = None, **changes: Any
) -> list[Score]:
    """Run a pipeline of :func:`write_tiny` without a word; ``changes`` are of the run, or of what is read of it."""
    own = {field.name: changes.pop(field.name) for field in fields(Run) if field.name in changes}
    run = tiny_run(read_sequence(pipeline, **changes), pipeline, out, tracker, stopping)
    return run_sequence(replace(run, **own))


def tiny_run(
    sequence: DomainSequence,
    pipeline: Path,
    out: Path,
    tracker: Tracker | None = None,
    stopping: Stopping | None = None,
) -> Run:
    """A run of ``sequence`` on the data beside its pipeline."""
    data, pseudonyms = pipeline.parent / "data", Pseudonyms(b"a key for tests")
    return Run(sequence, data, out, tracker or InMemory(), quiet(), stopping or Stopping(), pseudonyms)


def predict(run: Path, images: list[Path], out: Path, **how: Any) -> list[Path]:
    """Label maps of images, without a word."""
    with quiet() as console:
        return predicting.predict(run, images, out, console, **how)


def write_conspicuous(pipeline: Path, folder: Path) -> None:
    """A copy of the tiny data set whose cases and patients have names that nothing may repeat."""
    copy(pipeline, folder)
    for manifest in (folder / "data" / "manifests").glob("*.csv"):
        text = manifest.read_text()
        for number in range(4):
            name = f"{manifest.stem}_{number:03d}"
            text = text.replace(f"{name},{name},", f"Case-Mustermann-{number},Erika Mustermann {number},")
        manifest.write_text(text)
