"""Tiny data sets and runs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.data import phantom
from garda.data.sequence import DomainSequence, read_sequence
from garda.evaluation.metrics import Score
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
source: {steps: 5, batch: 4}
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
  source: {steps: 3, batch: 4}
  target: {steps: 3, batch: 4, anatomies: 8, candidates: 3}
  trial: 4
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


def run_tiny(
    pipeline: Path,
    out: Path,
    tracker: Tracker | None = None,
    stopping: Stopping | None = None,
    judging: bool = False,
    **changes: Any,
) -> list[Score]:
    """Run a pipeline of :func:`write_tiny` without a word."""
    run = tiny_run(read_sequence(pipeline, **changes), pipeline, out, tracker, stopping)
    return run_sequence(replace(run, judging=judging))


def tiny_run(
    sequence: DomainSequence,
    pipeline: Path,
    out: Path,
    tracker: Tracker | None = None,
    stopping: Stopping | None = None,
) -> Run:
    """A run of ``sequence`` on the data beside its pipeline."""
    console = Console(RichConsole(quiet=True))
    data, pseudonyms = pipeline.parent / "data", Pseudonyms(b"a key for tests")
    return Run(sequence, data, out, tracker or InMemory(), console, stopping or Stopping(), pseudonyms)


def write_conspicuous(pipeline: Path, folder: Path) -> None:
    """A copy of the tiny data set whose cases and patients have names that nothing may repeat."""
    shutil.copytree(pipeline.parent, folder)
    for manifest in (folder / "data" / "manifests").glob("*.csv"):
        text = manifest.read_text()
        for number in range(4):
            name = f"{manifest.stem}_{number:03d}"
            text = text.replace(f"{name},{name},", f"Case-Mustermann-{number},Erika Mustermann {number},")
        manifest.write_text(text)
