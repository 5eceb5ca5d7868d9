"""How far tuned and plain steps differ in what they learn: the losses of both, step by step, from the same start.

    python -m benchmarks.agreement pipelines/phantom.yaml [--config CONFIG] [--size H W] [--steps 50] [--json FILE]

*Tuned* and *plain* are those of `benchmarks.steps`, on random images that change from step to step, with the same
random numbers in each step. A line a loss gives the largest difference over the first ten steps and over all, as a
share of the loss's mean size; and, to compare with, what becomes over all of them of a change of the weights by a
millionth in plain arithmetic: a duel of networks lets every rounding grow.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn

from benchmarks.measure import Plain
from benchmarks.steps import KINDS, Bench
from garda.data.sequence import read_sequence
from garda.handover.settings import parse_settings
from garda.training.device import Compute

CHANGE = 1e-6  # of the weights, as a share
Curves = dict[str, list[float]]


def learn(bench: Bench, kind: str, steps: int, change: float = 0.0) -> Curves:
    """The losses of ``steps`` steps of one kind of training, each weight of which is changed by a share at first."""
    learner, size, _ = bench.learner(kind)
    torch.manual_seed(0)
    for part in learner.state().values():
        for weight in part.parameters() if change and isinstance(part, nn.Module) else ():
            weight.data.mul_(1 + change * torch.randn(weight.shape))
    curves: Curves = {}
    for index in range(steps):
        torch.manual_seed(index)
        for loss, value in learner.step(bench.batch(size) if size else None, index).items():
            curves.setdefault(f"{kind}: {loss}", []).append(float(value))
    return curves


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two curves, as a share of their mean size."""
    size = sum(map(abs, theirs)) / len(theirs)
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) / max(size, 1e-12)


def main() -> None:
    """Learn both ways, print, and write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--size", type=int, nargs=2, help="of the network's input, in place of the task's")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sequence = read_sequence(given.pipeline, config=given.config, method="garda_paper")
    task = sequence.task if given.size is None else sequence.task.model_copy(update={"size": tuple(given.size)})
    settings = parse_settings("garda_paper", sequence.settings, sequence.origin)
    found = {}
    tuned, plain = (
        Bench(task, settings, compute, 1) for compute in (Compute(settings.compute), Plain(settings.compute))
    )
    for kind in KINDS[:-1]:  # all but the prediction, which learns nothing
        ours, theirs = (learn(bench, kind, given.steps) for bench in (tuned, plain))
        changed = learn(plain, kind, given.steps, CHANGE)
        for name, curve in theirs.items():
            pairs = ((ours[name][:10], curve[:10]), (ours[name], curve), (changed[name], curve))
            found[name] = [difference(*pair) for pair in pairs]
            first, whole, control = found[name]
            print(f"{name:36} first ten {first:8.3%}, all {whole:8.3%}; rounding alone {control:8.3%}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"steps": given.steps, "size": task.size, "found": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
