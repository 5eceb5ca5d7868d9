"""Seconds of every kind of training step of a pipeline's method, on random images.

    python -m benchmarks.steps pipelines/phantom.yaml [--config configs/small.yaml] [--steps 10]

Prints the median, the fastest and the slowest step of each kind, after two steps that are not counted.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from garda.generators.adversarial import FromImages, FromStyle
from garda.generators.features import build_encoder
from garda.methods import build_method, parse_settings
from garda.segmenter import FromLabels, FromReplay
from garda.sequence import read_sequence
from garda.slices import Batch

WARM_UP = 2


def measure(step: Callable[[int], Mapping[str, Tensor]], count: int) -> list[float]:
    """Seconds of ``count`` steps; R1 falls on the steps on which training would apply it."""
    seconds = []
    for index in range(WARM_UP + count):
        started = time.perf_counter()
        for loss in step(index).values():
            loss.item()
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def main() -> None:
    """Measure the four lessons of ``garda_paper``, from the source segmenter to the replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    sequence = read_sequence(given.pipeline, config=given.config, method="garda_paper")
    task, settings = sequence.task, parse_settings("garda_paper", sequence.settings, sequence.config)
    compute, recipe = build_method("garda_paper", settings, task).compute, settings.garda_paper
    torch.manual_seed(0)

    def batch(size: int) -> Batch:
        return Batch(torch.rand(size, task.channels, *task.size), torch.randint(len(task.classes), (size, *task.size)))

    labels = FromLabels(task, settings.segmenter, settings.source, compute)
    images = FromImages(task, "a", recipe.generator, recipe.images, compute)
    encoder = build_encoder(recipe.features, labels.segmenter)
    style = FromStyle(task, "b", images.generator, encoder, recipe.style, compute)
    teacher = copy.deepcopy(labels.segmenter)
    replay = FromReplay(labels.segmenter, teacher, style.generator, recipe.replay, compute)
    print(f"{torch.get_num_threads()} threads, {compute.device}, {settings.compute.precision}, {task.size} pixels")
    kinds: dict[str, Callable[[int], Mapping[str, Tensor]]] = {
        "source segmenter": lambda step: labels.step(batch(settings.source.batch), step),
        "source generator": lambda step: images.step(batch(recipe.images.batch), step),
        "target generator": lambda step: style.step(batch(recipe.style.batch), step),
        "replay segmenter": lambda step: replay.step(None, step),
    }
    for name, step in kinds.items():
        seconds = measure(step, given.steps)
        print(f"{name:18} median {statistics.median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s")


if __name__ == "__main__":
    main()
