"""What one more domain costs in a long sequence: training and scoring time, memory, and bytes of the package.

    python -m benchmarks.sequence pipelines/phantom.yaml --data DIR --out DIR [--config C] [--domains 20]
        [--set KEY=VALUE] [--json FILE]

Runs `garda` with the pipeline's source and as many targets as are asked for: the pipeline's own in turn, under new
names, site-01 and so on, with the same scans again. A line a stage gives the seconds of training, of scoring and of the
whole stage, the gate and all reading and writing included; the peak of memory; the bytes of its package, and what they
grew by, as a share of the source's package. At the end the last target's stage is compared with the second's; 20
targets of a pipeline with three give both the same scans. Everything is written into a new folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.measure import describe, peak, reset_peak
from garda.core import files
from garda.core.config import load
from garda.core.console import Console
from garda.core.errors import ConfigError, DataError, GardaError, RunFolderError
from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.data import checks
from garda.data.sequence import DomainSequence, Pipeline, read_sequence
from garda.handover import format
from garda.handover.settings import parse_settings
from garda.methods import metadata
from garda.runs import arguments, run
from garda.runs.context import Run, stage_name
from garda.runs.tracking import InMemory
from garda.training.device import Compute

MOST_SECONDS = 1.10  # the last target's training against the second's
MOST_GROWTH = 0.02  # of the source's package, for each target
SCORES = "-scores"  # how a stage's bar of scoring is named


@dataclass(frozen=True)
class StageCost:
    """What one stage took.

    Attributes:
        name: such as ``2-site-02``.
        kept: whether the gate let its knowledge in.
        training: seconds of all its training.
        scoring: seconds; scores that no stage can have changed are copied.
        whole: seconds of the whole stage.
        memory: bytes at the peak, see :func:`benchmarks.measure.peak`.
        package: bytes of all files of its package.
    """

    name: str
    kept: bool
    training: float
    scoring: float
    whole: float
    memory: int
    package: int


@dataclass(frozen=True)
class Summary:
    """What one more domain costs.

    Attributes:
        training: seconds of the last target's training / those of the second's; NaN where either has not learnt.
        whole: the same of the whole stages; the gate looks at every domain met, so that this may grow.
        growth: bytes that a target adds to the package / bytes of the source's; the mean.
        last_growth: the same of the last target.
    """

    training: float
    whole: float
    growth: float
    last_growth: float


class Clock(Console):
    """Also notes how long each bar took.

    Attributes:
        seconds: from a bar's making to its last advance, by its name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def bar(self, name: str) -> Callable[[int, int], None]:
        """A bar that is timed."""
        show, started = super().bar(name), time.perf_counter()

        def advance(done: int, total: int) -> None:
            show(done, total)
            self.seconds[name] = time.perf_counter() - started

        return advance


class Meter(InMemory):
    """Notes time and peak of memory when a stage has been learnt and scored.

    Attributes:
        ends: (seconds, bytes) of each stage by name; the seconds are those since the end of the stage before.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.ends: dict[str, tuple[float, int]] = {}
        self._device, self._last = device, time.perf_counter()
        reset_peak(device)

    def stage_ended(self, stage: str, stage_index: int, metrics: Mapping[str, float]) -> None:
        """A stage's end is the next one's start."""
        super().stage_ended(stage, stage_index, metrics)
        now = time.perf_counter()
        self.ends[stage] = now - self._last, peak(self._device)
        self._last = now
        reset_peak(self._device)


def write_pipeline(pipeline_file: Path, out: Path, domains: int, config: Path | None = None) -> Path:
    """A pipeline of method `garda` with the targets of another one in turn, and copies of its manifests.

    Args:
        pipeline_file: the other one.
        out: new folder.
        domains: number of targets.
        config: takes the place of the pipeline's configuration.

    Raises:
        RunFolderError: ``out`` exists.
        ConfigError: the pipeline has no target.
    """
    pipeline = load(Pipeline, pipeline_file)
    if not pipeline.targets:
        raise ConfigError(pipeline_file, "has no target", "give a pipeline with one target or more")
    if out.exists():
        raise RunFolderError(out, "exists already", "give another name, or remove it")
    (out / "manifests").mkdir(parents=True)
    given = pipeline_file.parent / pipeline.manifests
    named = {f"site-{number:02}": name for number, name in enumerate(_in_turn(pipeline.targets, domains), 1)}
    for new, old in {pipeline.source: pipeline.source, **named}.items():
        shutil.copyfile(given / f"{old}.csv", out / "manifests" / f"{new}.csv")
    shutil.copyfile(given / "task.yaml", out / "manifests" / "task.yaml")
    config = config or pipeline_file.parent / pipeline.config
    changes = {"manifests": "manifests", "targets": [*named], "config": str(config.resolve()), "method": "garda"}
    written = out / "pipeline.yaml"
    written.write_text(yaml.safe_dump(pipeline.model_dump(mode="json") | changes, sort_keys=False), encoding="utf-8")
    return written


def _in_turn(names: Sequence[str], count: int) -> list[str]:
    return [*itertools.islice(itertools.cycle(names), count)]


def follow(sequence: DomainSequence, data: Path, out: Path) -> tuple[list[StageCost], torch.device]:
    """Run a sequence in a new folder.

    Args:
        sequence: at least one of its test scans is labelled.
        data: the folder that manifest paths are relative to.
        out: the run folder.

    Returns:
        what each stage took, and on which device.
    """
    settings = parse_settings(sequence.method, sequence.settings, sequence.origin)
    device = Compute(settings.compute).device
    clock, meter = Clock(), Meter(device)
    with clock:
        run.run_sequence(Run(sequence, data, out, meter, clock, Stopping(), Pseudonyms(b"benchmark")))
    trained: dict[str, float] = files.read_json(out / "seconds.json")
    return [_cost(sequence, index, out, trained, clock, meter) for index in range(len(sequence.domains))], device


def _cost(
    sequence: DomainSequence, index: int, out: Path, trained: Mapping[str, float], clock: Clock, meter: Meter
) -> StageCost:
    domain = sequence.domains[index]
    name, package = stage_name(domain), format.stage_folder(out, index, domain.name)
    whole, memory = meter.ends[name]
    return StageCost(
        name=name,
        kept=domain.name in metadata.read_metadata(package).domains,
        training=sum(seconds for part, seconds in trained.items() if part.startswith(f"{name}-")),
        scoring=clock.seconds.get(name + SCORES, 0.0),
        whole=whole,
        memory=memory,
        package=sum(file.stat().st_size for file in package.iterdir()),
    )


def grown(stages: Sequence[StageCost]) -> list[float]:
    """What each target has added to the package, as a share of the source's."""
    return [(b.package - a.package) / stages[0].package for a, b in itertools.pairwise(stages)]


def summarise(stages: Sequence[StageCost]) -> Summary:
    """What one more domain costs, from the stages of a source and two targets or more."""
    second, last, growth = stages[2], stages[-1], grown(stages)
    learnt = second.training and last.training
    ratio = last.training / second.training if learnt else math.nan
    return Summary(ratio, last.whole / second.whole, statistics.mean(growth), growth[-1])


def show(stage: StageCost, growth: float | None) -> str:
    """One line."""
    seconds = f"training {stage.training:7.1f} s, scoring {stage.scoring:6.1f} s, whole {stage.whole:7.1f} s"
    grew = "" if growth is None else f" (+{growth:.2%})"
    refused = "" if stage.kept else ", refused by the gate"
    return (
        f"{stage.name:16} {seconds}, peak {stage.memory / 2**30:5.2f} GiB, package {stage.package} bytes{grew}{refused}"
    )


def conclude(stages: Sequence[StageCost], found: Summary) -> list[str]:
    """Lines that name what was found and the bars; one more where stages are missing."""
    both, count = f"{stages[-1].name} / that of {stages[2].name}", len(stages) - 1
    refused = [stage.name for stage in stages if not stage.kept]
    lines = [
        f"training of {both}: {found.training:.3f} "
        f"(bar: at most {MOST_SECONDS:.2f}), {_met(found.training <= MOST_SECONDS)}",
        f"whole stage of {both}: {found.whole:.3f} (no bar)",
        f"growth of the package a domain: {found.growth:.2%} of the source's in the mean of {count}, "
        f"{found.last_growth:.2%} in the last (bar: at most {MOST_GROWTH:.0%}), "
        f"{_met(max(found.growth, found.last_growth) <= MOST_GROWTH)}",
        f"in all: training {sum(stage.training for stage in stages):.0f} s, "
        f"scoring {sum(stage.scoring for stage in stages):.0f} s, whole {sum(stage.whole for stage in stages):.0f} s, "
        f"peak {max(stage.memory for stage in stages) / 2**30:.2f} GiB",
    ]
    if refused:
        lines.append(f"refused by the gate: {', '.join(refused)}; these are not the figures of a whole sequence")
    return lines


def _met(held: bool) -> str:
    return "met" if held else "not met"


def measure(given: argparse.Namespace) -> None:
    """Run, print, and write JSON where it is asked for; errors as in :func:`write_pipeline`, and those of a run."""
    if given.domains < 2:
        raise ConfigError(
            "--domains", f"expected 2 or more, got {given.domains}", "the last is compared with the second"
        )
    pipeline = write_pipeline(given.pipeline, given.out, given.domains, given.config)
    sequence = read_sequence(pipeline, changes=arguments.parse_changes(given.set))
    if not any(checks.labelled_cases(domain) for domain in sequence.domains):
        raise DataError(given.pipeline, "no test scan has a label to score by", "give a pipeline that has some")
    stages, device = follow(sequence, given.data, given.out / "run")
    found, machine = summarise(stages), describe(device)
    print(f"{machine}, {sequence.task.size} pixels, config {sequence.origin}")
    for stage, growth in zip(stages, [None, *grown(stages)], strict=True):
        print(show(stage, growth))
    print("\n".join(conclude(stages, found)))
    if given.json:
        result: dict[str, Any] = {"machine": machine, "summary": asdict(found), "stages": [*map(asdict, stages)]}
        given.json.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Measure; errors a user can cause are one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--config", type=Path, help="in place of the pipeline's configuration")
    parser.add_argument("--domains", type=int, default=20, help="number of targets, 2 or more")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting: a.b=3")
    parser.add_argument("--json", type=Path)
    try:
        measure(parser.parse_args())
    except GardaError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
