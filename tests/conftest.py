"""Data and finished runs that many suites read: each is made once, by whichever process asks first, and never changed.

A test that changes something takes a copy: ``sites.copy``, or ``shutil.copytree``.
"""

import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from garda.data.sequence import Domain, read_sequence
from garda.methods.oracles import Oracle
from garda.methods.registry import METHODS
from garda.runs.tracking import InMemory
from tests.support import cli, sites
from tests.support.scans import OLD

Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A folder by name, filled once for all processes that test side by side."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    root.mkdir(exist_ok=True)

    def find(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = root / name, root / f"{name}.filled"
        with FileLock(root / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a failure has left
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return find


@pytest.fixture(scope="session")
def pipeline(once: Once) -> Path:
    """The pipeline of the tiny data set."""
    return once("tiny", sites.write_tiny) / "pipeline.yaml"


class Forgetful(InMemory):
    """Deletes what a domain was learnt from as soon as its stage has ended."""

    def __init__(self, data: Path, domains: Sequence[Domain]) -> None:
        super().__init__()
        self.data, self.domains = data, domains

    def stage_ended(self, stage: str, stage_index: int, metrics: Mapping[str, float]) -> None:
        super().stage_ended(stage, stage_index, metrics)
        for case in self.domains[stage_index].split("train"):
            for file in (case.image, *case.labels):
                (self.data / file).unlink()


@pytest.fixture(scope="session")
def run_of(once: Once, pipeline: Path) -> Callable[[str], Path]:
    """The run folder of a method that has gone through the tiny data set, by its name.

    But for oracles, which may look back, every run was made in a copy of the data set (``tiny``, beside the run) in
    which no training label of a target can be read, and from which a domain's training files went after its stage.
    What its tracker was told lies beside it in ``tracker.pickle``.
    """

    def fill(folder: Path) -> None:
        method, tracker, own = folder.name, InMemory(), pipeline
        if not issubclass(METHODS[method], Oracle):
            own, sequence = sites.copy(pipeline, folder / "tiny"), read_sequence(pipeline)
            tracker = Forgetful(own.parent / "data", sequence.domains)
            for case in (case for domain in sequence.targets for case in domain.split("train")):
                (own.parent / "data" / case.labels[0]).write_bytes(b"no label at all")
        sites.run_tiny(own, folder / "run", tracker, method=method)
        (folder / "tracker.pickle").write_bytes(pickle.dumps(tracker))

    return lambda method: once(method, fill) / "run"


@pytest.fixture(scope="session")
def finished(run_of: Callable[[str], Path]) -> Path:
    """The run folder of garda."""
    return run_of("garda")


@pytest.fixture(scope="session")
def exported_onnx(once: Once) -> bytes:
    """The network of the old package for its target as an ONNX file; to trace one takes seconds."""
    words = ("export", OLD / "garda.zip", "--to", "onnx", "--out")
    return (once("onnx", lambda folder: cli.garda(*words, folder / "network.onnx")) / "network.onnx").read_bytes()
