import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from garda import cli
from garda.core.errors import ConfigError, Interrupted, Problems
from garda.core.pseudonyms import Pseudonyms, load_key
from garda.core.signals import Stopping
from garda.handover.settings import parse_settings
from garda.runs import hop
from garda.runs.tracking import InMemory
from garda.training import distributed, loop, meeting, sharding, weights
from garda.training.loop import Phase
from garda.training.sharding import BatchNorm2d
from tests.support import fakes, sites
from tests.support.errors import told
from tests.support.fakes import StopAt
from tests.support.pair import CHANGES, METHODS, losses
from tests.support.sites import SITES

ROOT = Path(__file__).parents[2]
SLURM = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "a", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
MEETING = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def pair(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, list[float]]]]:
    """Methods by two processes with gloo on the CPU, and by one: where JSON of the two lies, and losses of the one.

    What the target's stage begins with is one's to the bit, so that rounding in the source's does not count twice.
    """
    folder = tmp_path_factory.mktemp("pair")
    (folder / "data").symlink_to(pipeline.parent / "data")
    (folder / "tiny.yaml").symlink_to(pipeline.parent / "tiny.yaml")
    whole = pipeline.read_text()
    (folder / "source.yaml").write_text(whole.replace(f"[{SITES[1]}, {SITES[2]}]", "[]"))
    (folder / "target.yaml").write_text(whole.replace(f", {SITES[2]}]", "]"))
    alone = {}
    for method in METHODS:
        for which in ("source", "target"):
            tracker = InMemory()
            sites.run_tiny(folder / f"{which}.yaml", folder / "alone" / method, tracker, method=method, changes=CHANGES)
            alone[f"{which}/{method}"] = losses(tracker)
            if which == "source":
                shutil.copytree(folder / "alone" / method, folder / "target" / method)
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.pair", str(folder)]
    both = [subprocess.Popen(command, cwd=ROOT, env={**shared, "LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    return folder, alone


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", ["source", "target"])
def test_two_processes_learn_what_one_does(which, method, pair):
    folder, alone = pair
    told, curves = json.loads((folder / which / f"{method}.json").read_text()), alone[f"{which}/{method}"]
    assert told.keys() == curves.keys() and curves
    for name, curve in curves.items():
        assert told[name] == pytest.approx(curve, rel=1e-3, abs=1e-6), name


def test_no_lesson_is_left_out(pair):
    """Each kind of objective has taught someone above."""
    kinds = {name.rpartition(" ")[2] for curves in pair[1].values() for name in curves}
    wanted = {"segmentation", "reconstruction", "flow", "answers", "distillation", "content", "r1"}
    assert wanted | {"adversarial", "discriminator", "consistency", "entropy"} <= kinds


def test_running_statistics_are_those_of_the_whole_batch(pair):
    """Of the first layer; in later ones biases that decide nothing, before a normalisation, follow rounding."""
    alone, two = (
        weights.read_weights(pair[0] / run / "stages" / f"0-{SITES[0]}" / "package" / "segmenter.safetensors")
        for run in ("alone/cotta", "source/cotta")
    )
    (name,) = [name for name in alone if name.startswith("conv_0.conv_0.") and name.endswith("running_var")]
    assert two[name].tolist() == pytest.approx(alone[name].tolist(), rel=1e-3)
    assert two[name].tolist() != pytest.approx([1.0] * len(alone[name]), rel=1e-2)


def garda(pipeline: Path, out: Path, *more: str) -> list[str]:
    program = str(Path(sys.executable).with_name("garda"))
    words = [program, "run", str(pipeline), "--data", str(pipeline.parent / "data"), "--out", str(out)]
    return [*words, "--method", "source_only", "--devices", "2", *more]


def without_meeting() -> dict[str, str]:
    """The environment without what an earlier launch may have left in it."""
    return {name: value for name, value in os.environ.items() if name not in MEETING} | {"OMP_NUM_THREADS": "1"}


def listeners(*processes: int) -> set[str]:
    """The addresses at which processes accept connections."""
    own = set()
    for process in processes:
        for file in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(os.readlink(file))
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[place] for place in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in own:
                words = [bytes.fromhex(local[start : start + 8])[::-1] for start in range(0, len(local) - 5, 8)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


class StopNow(StopAt):
    """A tracker that asks for a stop at the first step it is told of."""

    def __init__(self) -> None:
        super().__init__(f"0-{SITES[0]}-plain", -1)

    def losses(self, stage, step, values):
        super().losses(stage, self.step, values)


def test_the_command_starts_the_other_process_and_goes_on_with_another_number_of_them(pipeline, tmp_path):
    """Stopped with two by the signal that a cluster sends, ended with one."""
    words = garda(
        pipeline,
        tmp_path / "out",
        "--set",
        "source.steps=4000",
        "--set",
        "source.stopping=null",
        "--set",
        "checkpoint_seconds=0.5",
    )
    (tmp_path / "tmp").mkdir()
    own = without_meeting() | {"TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(words, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "out" / "stages" / f"0-{SITES[0]}" / "training" / "plain" / "checkpoint.pt"
    for _ in range(1200):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    heard = listeners(process.pid, *map(int, children.split()))
    places = [*(tmp_path / "tmp").glob(f".garda-private-{os.getuid()}/*/meeting")]
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    assert told.splitlines()[-1].endswith("stopped on request; run the same command again to go on from here")
    assert len(children.split()) == 1
    assert heard and heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"} and places and not any(map(Path.exists, places))
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert step > 0
    # the rest of the lesson alone would take a minute; that the checkpoint is taken up shows in the first step told
    changes, stop = {"source": {"steps": 4000, "stopping": None}, "checkpoint_seconds": 0.5}, StopNow()
    own = {"method": "source_only", "changes": changes, "pseudonyms": Pseudonyms(load_key())}
    with pytest.raises(Interrupted):
        sites.run_tiny(pipeline, tmp_path / "out", stop, stop.stopping, **own)
    assert torch.load(checkpoint, weights_only=True)["step"] > step


def test_a_hop_is_learnt_by_two_processes_as_by_one(pipeline, pair, tmp_path):
    hop.adapt(fakes.hop_to(pipeline, pair[0] / "alone" / "garda", 2, tmp_path / "1"))
    program, package = str(Path(sys.executable).with_name("garda")), str(pair[0] / "alone" / "garda")
    words = [program, "adapt", package, str(sites.manifest(pipeline, 2)), "--data", str(pipeline.parent / "data")]
    words += ["--out", str(tmp_path / "2"), "--devices", "2"]
    done = subprocess.run(words, env=without_meeting(), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    one, two = (weights.read_weights(tmp_path / devices / "statistics.safetensors") for devices in ("1", "2"))
    learnt = [name for name in one if name.startswith(f"{SITES[2]}/")]
    assert one.keys() == two.keys() and learnt
    for name in learnt:
        assert torch.allclose(one[name].float(), two[name].float(), atol=5e-3), name


def test_without_loopback_it_is_said_at_once(monkeypatch):
    def unreachable(*_):
        raise OSError(errno.ENETUNREACH, "no")

    monkeypatch.setattr("garda.training.meeting.socket.create_connection", unreachable)
    what = "--devices: the processes cannot meet: the loopback device does not answer (network is unreachable)"
    with pytest.raises(ConfigError, match=re.escape(what)), meeting.at_a_private_place():
        raise AssertionError


def test_a_signal_to_all_processes_while_the_leader_scores_is_heard_by_the_leader(pipeline, tmp_path):
    """A terminal's Ctrl-C and a cluster's SIGTERM reach the followers too, which wait meanwhile."""
    words = garda(pipeline, tmp_path / "out")
    scoring = tmp_path / "scoring"
    slow = f"lambda *given: (__import__('pathlib').Path({str(scoring)!r}).touch(), time.sleep(60))"
    slow = f"import garda.runs.stage, time; garda.runs.stage.score_domains = {slow}"
    words = [sys.executable, str(tmp_path / "garda"), *words[1:]]
    (tmp_path / "garda").write_text(f"{slow}\nfrom garda.cli import main\nmain()\n")
    process = subprocess.Popen(
        words, env=without_meeting(), stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )
    for _ in range(1200):
        if scoring.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    assert told.count("\n") == 1 and "stopped on request" in told


def test_a_stop_while_a_checkpoint_is_written_waits_for_the_next_step(tmp_path):
    stopping = Stopping()
    saved = []

    class Objective:
        def state(self):
            saved.append(1)
            if len(saved) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

        def step(self, batch, step):
            return {"loss": torch.zeros(())}

    stage = Phase("s", tmp_path / "s", seed=0, stopping=stopping, checkpoint_seconds=1e-9)
    with stopping.listening(), pytest.raises(Interrupted) as caught:
        loop.fit(Objective, lambda step: None, 5, stage)
    assert caught.value.exit_code == 75
    assert torch.load(stage.checkpoint, weights_only=True)["step"] == 2


@pytest.mark.parametrize(
    ("more", "environment", "message"),
    [
        (["--devices", "1000"], {}, "--devices: 1000 are asked for; a process needs a core of its own: "),
        (["--set", "source.batch=5"], {}, "source.batch: 5 slices cannot be shared equally by 2 devices; change"),
        ([], {"MASTER_PORT": "a"}, "MASTER_PORT: expected a port's number, got 'a'; set it to a free port"),
        (["--nodes", "2"], {}, "MASTER_ADDR: is not set, and tells several machines where they meet; "),
        ([], SLURM, "--devices: processes that are there: 1, wanted: 2 devices"),
        (["--set", "compute.accelerator=cuda"], {}, "--devices: 2 are asked for; CUDA devices: 0 found; use at most 0"),
    ],
)
def test_what_cannot_be_started_is_one_line(pipeline, tmp_path, monkeypatch, capsys, more, environment, message):
    monkeypatch.setattr(distributed, "_world", distributed._World())
    for name in MEETING:
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in environment.items():
            monkeypatch.setenv(name, value.replace("taken", port))
        monkeypatch.setattr(sys, "argv", garda(pipeline, tmp_path / "out", *more))
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(message.format(taken=port)) and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_halves_of_a_batch_are_shared_equally_too():
    settings = parse_settings("garda_paper", {"garda_paper": {"style": {"batch": 6}}}, "x")
    sharding.check_batches(settings, ["garda_paper", "source"], 1)
    with pytest.raises(ConfigError, match=r"garda_paper\.style\.batch: 3 slices cannot be shared equally by 2 devices"):
        sharding.check_batches(settings, ["garda_paper", "source"], 2)
    with pytest.raises(Problems):
        sharding.check_batches(settings, ["garda_paper", "source"], 5)


def test_one_process_keeps_what_it_is_given():
    x = torch.randn(4, 3, 2, 2)
    assert x[sharding.shard(4)].data_ptr() == x.data_ptr() and x[sharding.shard(1, 3)].data_ptr() == x.data_ptr()
    assert sharding.mean(x) is x and distributed.largest(3) == 3 and distributed.on_rank_zero(lambda: "a") == "a"
    with distributed.together():
        assert distributed.world_size() == 1
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.running_var, theirs.running_var)


def test_normalisation_by_the_whole_batch_is_torchs(monkeypatch):
    """With one process's own sums in place of the others', the formula alone is compared."""
    monkeypatch.setattr(sharding, "world_size", lambda: 2)
    monkeypatch.setattr(sharding, "mean", lambda tensor: tensor)
    half = torch.randn(4, 3, 5, 5, dtype=torch.float64).float()
    whole = torch.cat([half, half])
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.allclose(ours(half), theirs(whole)[:4], atol=1e-6)
    assert torch.allclose(ours.running_mean, theirs.running_mean) and torch.allclose(
        ours.running_var, theirs.running_var
    )
    assert ours.num_batches_tracked == 1


def test_several_kinds_of_rows_are_shared_each_for_itself(monkeypatch):
    monkeypatch.setattr(sharding, "world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    assert sharding.shard(4) == slice(2, 4)
    assert sharding.shard(4, 2).tolist() == [2, 3, 5]
    assert "cannot be shared" in told(ValueError, sharding.shard, 3)


@pytest.mark.parametrize(("variables", "kind"), [({}, "LightningEnvironment"), (SLURM, "SLURMEnvironment")])
def test_a_machine_with_srun_is_not_taken_for_a_job(variables, kind, tmp_path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert type(distributed._surroundings()).__name__ == kind  # and no warning, which would be an error
