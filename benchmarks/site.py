"""What a large site costs in memory: its slices are taken in, then a few steps of the source segmenter learn from them.

    python -m benchmarks.site pipelines/phantom.yaml --folder DIR [--slices 100000] [--size 256 256] [--json FILE]

The scans are noise, made one after another, so that nothing but garda's own array holds them; the array's nameless file
lies in DIR and goes with the process. Prints seconds and bytes, the most anonymous memory at any time (what the process
really takes; pages of the file, which the system drops when it needs room, do not count), and how long a step takes
with the next batch drawn meanwhile and with each batch drawn before its step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import measure
from garda.data.dataset import Batch, Slices
from garda.data.sequence import read_sequence
from garda.data.task import Task
from garda.data.volume import Frame, Volume
from garda.handover.settings import parse_settings
from garda.methods.base import SharedSettings
from garda.models.objectives import SupervisedObjective
from garda.training import loop
from garda.training.device import Compute
from garda.training.loop import Phase

DEPTH = 100  # slices a scan


class Anonymous:
    """The most anonymous memory of this process while it listens, bytes (proc(5), RssAnon)."""

    def __init__(self) -> None:
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Anonymous:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._over.wait(0.05):
            lines = Path("/proc/self/status").read_text().splitlines()
            self.most = max(self.most, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")))


def scans(count: int, task: Task) -> Iterator[Volume]:
    """Labelled noise, ``count`` slices in all."""
    spacing = (10.0, *(task.spacing_mm or (1.0, 1.0)))
    for first in range(0, count, DEPTH):
        depth = min(DEPTH, count - first)
        random = torch.Generator().manual_seed(first)
        image = torch.rand(depth, task.channels, *task.size, generator=random)
        label = torch.randint(len(task.classes), (depth, *task.size), generator=random)
        yield Volume(f"scan-{first}", image, label, None, np.eye(4), spacing, Frame())


def time_steps(slices: Slices, task: Task, settings: SharedSettings, steps: int, folder: Path) -> tuple[float, float]:
    """Median seconds of a step of garda's own loop, and of one that draws its batch first."""
    lesson, compute = settings.source, Compute(settings.compute)
    ends: list[float] = []

    def draw(step: int) -> Batch:
        return slices.batch(step, lesson.batch, 0)

    stage = Phase("site", folder, seed=0, progress=lambda done, total: ends.append(time.perf_counter()))
    learner = loop.fit(lambda: SupervisedObjective(task, settings.segmenter, lesson, compute), draw, steps, stage)
    ahead = statistics.median(np.diff(ends)[2:])

    def step(index: int) -> None:
        learner.step(draw(index), index)

    return float(ahead), statistics.median([_seconds(step, steps + index) for index in range(steps)][2:])


def _seconds(step: Callable[[int], None], index: int) -> float:
    started = time.perf_counter()
    step(index)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where the slices' file lies meanwhile")
    parser.add_argument("--slices", type=int, default=100_000)
    parser.add_argument("--size", type=int, nargs=2, help="of the network's input, in place of the task's")
    parser.add_argument("--steps", type=int, default=20, help="that are timed, of each loop")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sequence = read_sequence(given.pipeline)
    task = sequence.task if given.size is None else sequence.task.model_copy(update={"size": tuple(given.size)})
    settings = parse_settings(sequence.method, sequence.settings, sequence.origin)
    with Anonymous() as memory, tempfile.TemporaryDirectory(dir=given.folder) as folder:
        started = time.perf_counter()
        slices = Slices(scans(given.slices, task), task, with_labels=True, private_folder=given.folder)
        taken_in = time.perf_counter() - started
        ahead, plain = time_steps(slices, task, settings, given.steps, Path(folder))
    found = {
        "slices": len(slices),
        "size": task.size,
        "bytes": slices.nbytes,
        "seconds to take in": taken_in,
        "anonymous memory": memory.most,
        "step, next batch drawn meanwhile": ahead,
        "step, batch drawn before": plain,
    }
    print(measure.describe(torch.device("cpu")))
    print("\n".join(f"{name}: {value}" for name, value in found.items()))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
