"""Every kind of step of the published recipe, tuned and plain in turn in one process, on random images.

    python -m benchmarks.steps pipelines/phantom.yaml --config configs/paper.yaml --size 256 256 [--json FILE]

*Tuned* is how garda computes with the configuration's settings; *plain* the same mathematics in float32, with torch's
default layout, malloc's own ways and MONAI's U-Net as it comes, and for the prediction MONAI's SliceInferer, a slice at
a time. Each line gives the median, the fastest and the slowest step, the peak of memory and the operations a second; at
the end, how tuned compares with plain, and the share of what a plain product of matrices of the same type reaches on
this machine. A step of the discriminator's penalty (R1), which comes every so many steps, has a line of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from monai.inferers import SliceInferer
from torch import nn

from benchmarks import measure
from benchmarks.measure import Measured, Plain
from garda.data.dataset import Batch
from garda.data.sequence import read_sequence
from garda.data.task import Task
from garda.data.volume import Frame, Volume
from garda.handover.settings import parse_settings
from garda.methods.garda_paper import GardaPaperSettings
from garda.models import features, inference, unet
from garda.models.features import VGG19Encoder
from garda.models.objectives import DistillationObjective, SupervisedObjective
from garda.models.stylegan_training import GanObjective, GanStyleObjective
from garda.training.device import Compute
from garda.training.loop import Objective

Step = Callable[[int], object]
KINDS = ("source segmenter", "source generator", "target generator", "replay segmenter", "prediction")


class Bench:
    """The steps of one recipe on one device, each built when it is asked for."""

    def __init__(self, task: Task, settings: GardaPaperSettings, compute: Compute, slices: int) -> None:
        """Nothing is built yet; ``slices`` is the depth of the volume that is predicted."""
        self._task, self._settings, self._compute, self._slices = task, settings, compute, slices
        self._recipe: GardaPaperSettings = settings.garda_paper  # type: ignore[attr-defined]

    def learner(self, kind: str) -> tuple[Objective, int, int]:
        """What teaches one kind of training, images a step (0 for none), and steps between penalties (0 for none)."""
        torch.manual_seed(0)
        task, compute, recipe = self._task, self._compute, self._recipe
        if kind == "source segmenter":
            lesson = self._settings.source  # type: ignore[attr-defined]
            return SupervisedObjective(task, self._settings.segmenter, lesson, compute), lesson.batch, 0  # type: ignore[attr-defined]
        if kind == "source generator":
            images = GanObjective(task, "a", recipe.network, recipe.images, compute)
            return images, recipe.images.batch, recipe.images.r1_interval
        if kind == "target generator":
            style = GanStyleObjective(task, "b", self._generator(), self._encoder(), recipe.style, compute)
            return style, recipe.style.real_images, recipe.style.r1_interval
        segmenter = self._segmenter()
        return (
            DistillationObjective(segmenter, copy.deepcopy(segmenter), self._generator(), recipe.replay, compute),
            0,
            0,
        )

    def batch(self, size: int) -> Batch:
        """Random images and labels."""
        task = self._task
        return Batch(torch.rand(size, task.channels, *task.size), torch.randint(len(task.classes), (size, *task.size)))

    def steps(self, kind: str) -> Iterator[tuple[str, Step]]:
        """The kinds of steps of one training by name; one with the penalty and one without, where there is one."""
        if kind == KINDS[-1]:
            torch.manual_seed(0)
            yield kind, self._prediction()
            return
        learner, size, interval = self.learner(kind)
        batch = self.batch(size) if size else None
        if interval == 0:
            yield kind, lambda index: learner.step(batch, index)
            return
        yield kind, lambda index: learner.step(batch, 1 + index % (interval - 1) if interval > 1 else index)
        yield f"{kind}, with R1", lambda index: learner.step(batch, index * interval)

    def _prediction(self) -> Step:
        task, network = self._task, self._compute.prepare(self._segmenter()).eval()
        image = torch.rand(self._slices, task.channels, *task.size)
        spacing = (10.0, *(task.spacing_mm or (1.0, 1.0)))
        volume = Volume("v", image, None, None, np.eye(4), spacing, Frame())
        if not isinstance(self._compute, Plain):
            return lambda index: inference.segment(network, volume, task, self._compute)
        infer = SliceInferer(roi_size=task.size, spatial_dim=0, sw_batch_size=1)
        whole = self._compute.to_device(image.swapaxes(0, 1)[None])

        def plain(index: int) -> object:
            with torch.no_grad():
                return infer(whole, network).argmax(dim=1).cpu()

        return plain

    def _segmenter(self) -> nn.Module:
        return unet.build_segmenter(self._task, self._settings.segmenter)  # type: ignore[attr-defined]

    def _generator(self) -> nn.Module:
        return GanObjective(self._task, "a", self._recipe.network, self._recipe.images, self._compute).generator

    def _encoder(self) -> nn.Module:
        """The recipe's encoder; in place of VGG19's weights, which garda does not ship, random ones take as long."""
        if self._recipe.features.encoder == "vgg19" and self._recipe.features.weights is None:
            return VGG19Encoder().eval().requires_grad_(False)
        return features.build_encoder(self._recipe.features, self._segmenter())


def show(name: str, how: str, found: Measured) -> str:
    """One line."""
    busy = "" if found.utilisation is None else f", GPU busy {found.utilisation:.0%}"
    seconds = f"{found.median:8.4f} s ({found.fastest:.4f} to {found.slowest:.4f})"
    return f"{name:26} {how:6} {seconds}, peak {found.peak / 2**30:5.2f} GiB, {found.rate / 1e12:.3f} TFLOP/s{busy}"


def main() -> None:
    """Measure, print, and write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--size", type=int, nargs=2, help="of the network's input, in place of the task's")
    parser.add_argument("--slices", type=int, default=100, help="of the volume that is predicted")
    parser.add_argument("--steps", type=int, default=10, help="that are timed, of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sequence = read_sequence(given.pipeline, config=given.config, method="garda_paper")
    task = sequence.task if given.size is None else sequence.task.model_copy(update={"size": tuple(given.size)})
    settings = parse_settings("garda_paper", sequence.settings, sequence.origin)
    computes = {"tuned": Compute(settings.compute), "plain": Plain(settings.compute)}
    device = computes["tuned"].device
    kinds = {"tuned": computes["tuned"].dtype, "plain": torch.float32}
    limits = {how: measure.matrix_limit(device, kind) for how, kind in kinds.items()}
    machine = measure.describe(device)
    print(f"{machine}, {task.size} pixels, batch {settings.garda_paper.images.batch}")
    results: dict[str, dict[str, Measured]] = {}
    for kind in given.kinds:
        for how, compute in computes.items():
            measure.allocate_for(compute)
            limits[how] = max(limits[how], measure.matrix_limit(device, kinds[how]))  # other work can only lower it
            for name, step in Bench(task, settings, compute, given.slices).steps(kind):
                found = measure.measure(step, device, given.steps)
                results.setdefault(name, {})[how] = found
                print(show(name, how, found), flush=True)
            del step  # and with it its networks
    print("a product of matrices:", {how: f"{limit / 1e12:.3f} TFLOP/s" for how, limit in limits.items()})
    for name, found in results.items():
        times, memory = found["plain"].median / found["tuned"].median, found["tuned"].peak / found["plain"].peak
        shares = " and ".join(f"{found[how].rate / limit:.0%}" for how, limit in limits.items())
        print(f"{name:26} tuned is {times:.2f} times as fast with {memory:.0%} of the memory; {shares} of a product")
    if given.json:
        rows = {name: {how: asdict(found) for how, found in both.items()} for name, both in results.items()}
        given.json.write_text(json.dumps({"machine": machine, "limits": limits, "steps": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
