"""Stand-ins, and what several suites ask of a run."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml

from garda.core.pseudonyms import Pseudonyms
from garda.core.signals import Stopping
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.data.volume import Frame, Volume
from garda.handover import settings
from garda.handover.format import KNOWLEDGE
from garda.methods import registry
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.methods.oracles import Oracle
from garda.runs.hop import Hop
from garda.runs.tracking import InMemory
from garda.training.cache import Stage
from garda.training.loop import Phase
from tests.support import sites
from tests.support.sites import CONFIG

TASK = Task(name="t", classes=("background", "organ"), size=(16, 16))


def stages(folder: Path, index: int):
    return Stage(lambda part: Phase(f"{index}-{part}", folder / f"{index}-{part}", seed=index))


def learn_source(learner: Method, folder: Path) -> Knowledge:
    slices = FakeSlices(0, with_labels=True)
    return learner.learn_source("a", slices, slices, stages(folder, 0))


def learn_target(learner: Method, knowledge: Knowledge, domain: str, opened: Stage) -> Knowledge:
    """Give a method what it may see of a target, and an oracle what it may see of all domains met."""
    if isinstance(learner, Oracle):
        labelled = {d: d == "a" or learner.reads_target_labels for d in (*knowledge.domains, domain)}
        met = {d: FakeSlices("abc".index(d), with_labels=labelled[d]) for d in labelled}
        return learner.adapt_jointly(knowledge, met, opened)
    return learner.adapt(knowledge, domain, FakeSlices("abc".index(domain), with_labels=False), opened)


class StopAt:
    """A tracker that asks for a stop when a phase reports a step."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step, self.stopping = stage, step, Stopping()

    def losses(self, stage, step, values):
        if (stage, step) == (self.stage, self.step):
            self.stopping.exit_code = 75

    def start(self, run): ...
    def stage_ended(self, stage, stage_index, metrics): ...
    def artifact(self, path): ...
    def sealed(self, stage, site, facts, card): ...
    def finish(self, status): ...


def hop_to(pipeline: Path, package: Path, site: int, out: Path, **changes) -> Hop:
    manifest, pseudonyms = sites.manifest(pipeline, site), Pseudonyms(f"key of site {site}".encode())
    made = Hop(package, manifest, pipeline.parent / "data", out, InMemory(), sites.quiet(), Stopping(), pseudonyms)
    return replace(made, **changes)


def knowledge(package: Path) -> dict[str, bytes]:
    return {name: (package / name).read_bytes() for name in KNOWLEDGE if (package / name).exists()}


class FakeSlices(Slices):
    """Random slices of one domain, labelled or not."""

    def __init__(self, seed: int, *, with_labels: bool) -> None:
        self.task, self.with_labels = TASK, with_labels
        self.image = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return 8

    def batch(self, step: int, size: int, seed: int, scale: float = 1.0) -> Batch:
        image = self.image[(torch.arange(size) + step) % 8]
        return Batch(image, (image[:, 0] > 0.5).long() if self.with_labels else None)

    def hold_out(self) -> tuple[Slices, Slices]:
        return self, self

    def volumes(self) -> Iterator[torch.Tensor]:
        yield from self.image.split(4)


def bright_square(side: int, size: int) -> Volume:
    """A slice with a bright square in its middle."""
    image, first = torch.zeros(1, 1, size, size), (size - side) // 2
    image[..., first : first + side, first : first + side] = 1
    return Volume("c", image, None, None, np.eye(4), None, Frame())


def method(name: str) -> Method:
    return registry.build_method(name, settings.parse_settings(name, yaml.safe_load(CONFIG), "tiny.yaml"), TASK)


def follow(name: str, folder: Path) -> list[Knowledge]:
    """Knowledge after the source, the first and the second target."""
    learner = method(name)
    known = [learn_source(learner, folder)]
    for index, domain in enumerate("bc", start=1):
        known.append(learn_target(learner, known[-1], domain, stages(folder, index)))
    return known


@cache
def known_by(name: str) -> list[Knowledge]:
    """What :func:`follow` gives, for tests that only look at it."""
    with TemporaryDirectory() as folder:
        return follow(name, Path(folder))


def weights(knowledge: Knowledge) -> dict[str, torch.Tensor]:
    """Everything that is kept, by name."""
    parts = {"segmenter": knowledge.segmenter, "teacher": knowledge.source_segmenter, "generator": knowledge.generator}
    states = {part: network.state_dict() for part, network in {**parts, **knowledge.experts}.items() if network}
    return {
        f"{part}.{name}": value.clone()
        for part, state in {**states, **knowledge.domain_state}.items()
        for name, value in state.items()
    }


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
