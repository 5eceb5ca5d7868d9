"""Both error rates of the gate: what it does with a sequence's own sites, and with what should never be learnt.

    python -m benchmarks.gate pipelines/nuclei.yaml --data DATA --run runs/nuclei \\
        --other pipelines/phantom.yaml data/phantom --other pipelines/spinal_cord.yaml DATA

The run must be finished, best one of a comparison, which keeps what the gate would refuse. Its stages are looked at
again, and its source stage is shown the wrong inputs: the scans of the other sequences, black scans, noise, two slices,
label maps fed as images, and learning rates 100 times too high, with which the first target is learnt anew. Prints a
line an input with what decided, or came closest to deciding, and both error rates. Targets' labels are opened for the
label maps alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from garda.core.errors import TrainingError
from garda.core.seeds import derive_seed
from garda.data import volume
from garda.data.checks import without_label
from garda.data.dataset import Slices
from garda.data.sequence import Domain, DomainSequence, read_sequence
from garda.data.task import Task
from garda.data.volume import Volume
from garda.handover import format
from garda.handover.settings import parse_settings
from garda.methods import registry
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.safety import gate, limits
from garda.safety.limits import Check, GateSettings, SourceBaseline
from garda.training.cache import Stage
from garda.training.loop import Phase

TOO_HIGH = 100  # times the configured learning rate
Seen = tuple[str, str, list[Check]]  # kind of input, its name, what the gate says of it


def _black(image: Tensor) -> Tensor:
    """Black but for one pixel a slice, without which a scan would not be read at all."""
    dark = torch.zeros_like(image)
    dark[..., 0, 0] = 1
    return dark


def _lid_on(image: Tensor) -> Tensor:
    """Black but for the noise of the receiver, as intensity scaling shows it."""
    return (torch.randn_like(image) * 0.3).clamp(0, 1)


def _blurred(image: Tensor) -> Tensor:
    """Noise without its fine grain."""
    smooth = F.avg_pool2d(F.avg_pool2d(torch.randn_like(image), 3, 1, 1), 3, 1, 1)
    return (0.5 + 0.2 * smooth / smooth.std()).clamp(0, 1)


PAINTED: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("black", "one bright pixel"): _black,
    ("black", "receiver noise"): _lid_on,
    ("noise", "uniform"): torch.rand_like,
    ("noise", "normal"): lambda image: (0.5 + 0.2 * torch.randn_like(image)).clamp(0, 1),
    ("noise", "blurred"): _blurred,
}


@dataclass(frozen=True)
class Subject:
    """A finished run under examination.

    Attributes:
        pipeline: what it has learnt, as a file.
        data: where its scans lie.
        folder: the run.
        sequence: what it has learnt.
        method: how.
        settings: the limits.
        seed: of the gate.
    """

    pipeline: Path
    data: Path
    folder: Path
    sequence: DomainSequence
    method: Method
    settings: GateSettings
    seed: int

    def kept(self, domain: Domain) -> Knowledge:
        """The knowledge of a stage."""
        return self.method.load(format.stage_folder(self.folder, domain.index, domain.name))

    def read(self, domain: Domain) -> Slices:
        """A domain's training slices, the source's with labels."""
        labelled = domain.index == 0
        scans = read_scans(domain, self.sequence.task, self.data, with_label=labelled)
        return Slices(scans, self.sequence.task, with_labels=labelled)

    def incoming(self, before: Knowledge, name: str, slices: Slices, known: SourceBaseline) -> list[Check]:
        """What the gate says before learning."""
        return gate.inspect_incoming(self.method, before, name, slices, known, self.settings, self.seed)

    def learnt(self, before: Knowledge, after: Knowledge, slices: Slices, known: SourceBaseline) -> list[Check]:
        """What the gate says after it."""
        return gate.inspect_learnt(self.method, before, after, slices, known, self.settings, self.seed)


def read_scans(domain: Domain, task: Task, data: Path, *, with_label: bool = False) -> Iterator[Volume]:
    """A domain's training scans; with labels, those that have any."""
    for case in domain.split("train"):
        if case.labels or not with_label:
            yield volume.read_volume(case if with_label else without_label(case), task, data, with_label=with_label)


def own_sites(subject: Subject, known: SourceBaseline) -> Iterator[Seen]:
    """Every stage that the run has learnt."""
    before = subject.kept(subject.sequence.source)
    for domain in subject.sequence.targets:
        after, slices = subject.kept(domain), subject.read(domain)
        checks = subject.incoming(before, domain.name, slices, known)
        if domain.name in after.domains:
            checks += subject.learnt(before, after, slices, known)
        else:
            checks.append(
                limits.at_least("kept", domain.name, 0, (1, 1), "number of stages of it that the run has kept")
            )
        yield "own site", domain.name, checks
        before = after


def wrong_images(subject: Subject, known: SourceBaseline, others: list[tuple[Path, Path]]) -> Iterator[Seen]:
    """What should be refused before it is learnt."""
    knowledge = subject.kept(subject.sequence.source)
    for kind, name, scans in _wrong_scans(subject, others):
        slices = Slices(scans, subject.sequence.task, with_labels=False)
        if len(slices):
            yield kind, name, subject.incoming(knowledge, name, slices, known)


def _wrong_scans(subject: Subject, others: list[tuple[Path, Path]]) -> Iterator[tuple[str, str, Iterator[Volume]]]:
    task, first = subject.sequence.task, subject.sequence.targets[0]
    for pipeline, data in others:
        for domain in read_sequence(pipeline).domains:
            yield "another organ", domain.name, read_scans(domain, task, data)
    for domain in subject.sequence.domains:
        labelled = read_scans(domain, task, subject.data, with_label=True)
        yield "labels as images", domain.name, (_label_as_image(scan, task) for scan in labelled)
    for (kind, name), paint in PAINTED.items():
        torch.manual_seed(derive_seed(subject.seed, name))
        scans = read_scans(first, task, subject.data)
        yield kind, name, (replace(scan, image=paint(scan.image)) for scan in scans)
    single = (
        replace(scan, image=part) for scan in read_scans(first, task, subject.data) for part in scan.image.split(1)
    )
    yield "two slices", first.name, islice(single, 2)


def _label_as_image(scan: Volume, task: Task) -> Volume:
    if scan.label is None:
        raise ValueError("only a labelled scan has a label map")
    painted = scan.label.float() / (len(task.classes) - 1)
    return replace(scan, image=painted[:, None].expand_as(scan.image), label=None, labelled=None)


def too_fast(subject: Subject, known: SourceBaseline) -> Iterator[Seen]:
    """The first target learnt with learning rates that are too high: the method's, and then the generator's."""
    sequence, first = subject.sequence, subject.sequence.targets[0]
    before, slices = subject.kept(sequence.source), subject.read(first)
    for block in (sequence.method, "generator"):
        plain = subject.method.shared.model_dump(mode="json", include={block})
        if (faster := hasten(plain)) == plain or (block == "generator" and before.generator is None):
            continue
        changed = read_sequence(subject.pipeline, method=sequence.method, changes=faster)
        settings = parse_settings(changed.method, changed.settings, changed.origin)
        method = registry.build_method(changed.method, settings, changed.task)
        with tempfile.TemporaryDirectory() as folder:
            stages = Stage(lambda part, at=folder: Phase(part, Path(at) / part, derive_seed(sequence.seed, part)))
            try:
                after = method.adapt(before, first.name, slices, stages)
            except TrainingError as error:
                print(f"{block}: {error}")  # refused as well, by training itself
                continue
        yield "learning rate", block, subject.learnt(before, after, slices, known)


def hasten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every learning rate, at any depth, too high."""
    faster = dict(settings)
    for key, value in settings.items():
        if isinstance(value, Mapping):
            faster[key] = hasten(value)
        elif key == "learning_rate":
            faster[key] = value * TOO_HIGH
    return faster


def margin(check: Check) -> float:
    """How far a value is on the right side of its limit, as a share of the limit; below 0 on the wrong side."""
    if check.value is None:
        return -1.0
    scale = abs(check.limit) or 1.0
    return (check.value - check.limit) / scale * (1 if check.lowest else -1)


def show(seen: Seen, every: bool) -> str:
    """A line: kind, name, decision, and the check that decided or came closest to deciding, or all of them."""
    kind, name, checks = seen
    shown = checks if every else [min(checks, key=margin)]
    figures = "; ".join(_figure(check, name) for check in shown)
    return f"{kind:18}{name:24}{limits.decide(checks).decision:9}{figures}"


def _figure(check: Check, name: str) -> str:
    about = check.name if check.domain == name else f"{check.name} {check.domain}"
    value = "none" if check.value is None else f"{check.value:.3g}"
    return f"{about} {value} ({'>=' if check.lowest else '<='} {check.limit:.3g})"


def main() -> None:
    """Examine a run and print both error rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--method")
    parser.add_argument("--other", type=Path, nargs=2, action="append", default=[], metavar=("PIPELINE", "DATA"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", action="store_true", help="show all checks of an input")
    parser.add_argument("--no-learning", action="store_true", help="leave the learning rates out")
    given = parser.parse_args()
    sequence = read_sequence(given.pipeline, method=given.method)
    settings = parse_settings(sequence.method, sequence.settings, sequence.origin)
    method = registry.build_method(sequence.method, settings, sequence.task)
    subject = Subject(given.pipeline, given.data, given.run, sequence, method, settings.gate, given.seed)
    source = sequence.source
    known = gate.measure_baseline(method, subject.kept(source), subject.read(source), settings.gate, given.seed)
    print(known.model_dump())
    decisions: dict[bool, list[str]] = defaultdict(list)
    for seen in _all(subject, known, [tuple(pair) for pair in given.other], learning=not given.no_learning):
        print(show(seen, given.every), flush=True)
        decisions[seen[0] == "own site"].append(limits.decide(seen[2]).decision)
    own, wrong = decisions[True], decisions[False]
    print(f"own sites not promoted: {len(own) - own.count('promote')} of {len(own)}")
    print(f"wrong inputs not refused: {len(wrong) - wrong.count('refuse')} of {len(wrong)}")


def _all(subject: Subject, known: SourceBaseline, others: list[tuple[Path, Path]], *, learning: bool) -> Iterator[Seen]:
    yield from own_sites(subject, known)
    yield from wrong_images(subject, known, others)
    if learning:
        yield from too_fast(subject, known)


if __name__ == "__main__":
    main()
