"""The README's strip of pictures: what a target looks like, what is replayed of it, and how it is read.

    python -m benchmarks.pictures --data DIR --out DIR [--target tse_1p5t] [--picture docs/start/strip.png]

DATA is the phantom (`garda phantom --out DIR`). In OUT, ``source_only`` and the method of ``pipelines/phantom.yaml``
are compared as `make demo` compares them; what is finished already is not run again. The scans are the first test
patients of the source and of the target, the slice is their middle one; the replayed anatomy is the first drawn that
shows every class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor

from garda import cli
from garda.core.signals import Stopping
from garda.data.sequence import Domain, DomainSequence, read_sequence
from garda.data.volume import Volume, read_volume
from garda.evaluation.metrics import score_volume
from garda.handover import format, load
from garda.handover.load import LoadedPackage
from garda.methods.replay_method import ReplayMethod
from garda.models import inference

PIPELINE = Path("pipelines/phantom.yaml")
COLOURS = ("#4cc9f0", "#ffd166", "#ef476f", "#80ed99", "#c77dff")  # of the classes after the background
BEFORE = "source_only"
DRAWN = 64  # anatomies among which the first with every class is looked for


def main(arguments: list[str] | None = None) -> None:
    """Run what is not finished, and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description="Draw the README's strip.")
    parser.add_argument("--data", type=Path, required=True, help="the phantom's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the comparison")
    parser.add_argument("--target", default="tse_1p5t", help="domain that is shown")
    parser.add_argument("--picture", type=Path, default=Path("docs/start/strip.png"))
    asked = parser.parse_args(arguments)
    sequence = read_sequence(PIPELINE)
    both = ["--methods", f"{BEFORE},{sequence.method}", "--seeds", "0"]
    words = ["compare", str(PIPELINE), *both, "--data", str(asked.data), "--out", str(asked.out)]
    cli.app(words, obj=Stopping(), standalone_mode=False)
    draw(sequence, asked.data, asked.out, asked.target, asked.picture)


def draw(sequence: DomainSequence, data: Path, out: Path, target: str, picture: Path) -> None:
    """The strip of two finished runs, written to ``picture``."""
    domain = next(domain for domain in sequence.domains if domain.name == target)
    ours, before = (open_run(out / "runs" / method / "seed-0") for method in (sequence.method, BEFORE))
    source, scan = (first_test_scan(sequence, each, data) for each in (sequence.source, domain))
    image, anatomy = replay(ours, domain)
    panels: list[tuple[str, Tensor, Tensor | None]] = [
        (f"source {sequence.source.name}, its labels", middle(source.image[:, 0]), middle(source.label)),
        (f"target {target}, no labels", middle(scan.image[:, 0]), None),
        (f"anatomy replayed in {target}'s style", image, anatomy),
    ]
    for name, package in (("before: source segmenter", before), ("after: garda", ours)):
        found, dice = read(package, scan, target, sequence)
        panels.append((f"{name}, Dice {dice:.2f}", middle(scan.image[:, 0]), middle(found)))
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.35), facecolor="black", dpi=110)
    for axis, (title, grey, labels) in zip(axes, panels, strict=True):
        show(axis, title, grey, labels)
    figure.subplots_adjust(left=0.004, right=0.996, bottom=0.01, top=0.9, wspace=0.02)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, facecolor="black", pil_kwargs={"optimize": True})
    plt.close(figure)


def open_run(run: Path) -> LoadedPackage:
    """The last stage of a run."""
    with format.opened(run) as folder:
        return load.load_package(folder)


def first_test_scan(sequence: DomainSequence, domain: Domain, data: Path) -> Volume:
    """A domain's first test scan with its label, which is for the picture and the Dice alone."""
    return read_volume(domain.split("test")[0], sequence.task, data, with_label=True)


def replay(package: LoadedPackage, domain: Domain) -> tuple[Tensor, Tensor]:
    """(H, W) image in a domain's style and its (H, W) class indices."""
    if not isinstance(package.method, ReplayMethod):
        raise TypeError("the method has no generator")
    torch.manual_seed(0)
    pool = package.method.draw_pool(package.knowledge, DRAWN)
    images, probabilities = pool.batch(DRAWN, domain.index)
    labels = probabilities.argmax(dim=1).cpu()
    whole = [len(label.unique()) for label in labels]
    chosen = whole.index(max(whole))
    return images[chosen, 0].cpu(), labels[chosen]


def read(package: LoadedPackage, scan: Volume, domain: str, sequence: DomainSequence) -> tuple[Tensor, float]:
    """(D, H, W) class indices of a scan, and its Dice, the mean over classes."""
    method, task = package.method, sequence.task
    network = method.compute.prepare(method.network_for(package.knowledge, domain)).eval()
    shown = method.standardise(package.knowledge, scan, domain)
    found = inference.segment(network, shown, task, method.compute, package.knowledge.largest)
    if scan.label is None:
        raise ValueError("the scan has no label")
    rows = score_volume(found, scan.label, scan.labelled, scan.spacing_mm, task.classes)
    return found, sum(dice for _, dice, _, _ in rows) / len(rows)


def middle(volume: Tensor | None) -> Tensor:
    """The middle slice of (D, H, W)."""
    if volume is None:
        raise ValueError("the scan has no label")
    return volume[len(volume) // 2]


def show(axis: Axes, title: str, grey: Tensor, labels: Tensor | None) -> None:
    """A slice with its classes laid over it."""
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
    if labels is not None:
        shown = labels.float().masked_fill(labels == 0, float("nan"))
        last = len(COLOURS)
        axis.imshow(shown, cmap=ListedColormap(COLOURS), vmin=0.5, vmax=last + 0.5, alpha=0.55, interpolation="nearest")
    axis.set_title(title, color="white", fontsize=10.5)
    axis.set_axis_off()


if __name__ == "__main__":
    main()
