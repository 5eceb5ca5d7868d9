import errno
import math
import os
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from garda.core.errors import CheckpointError, Interrupted, RunFolderError, TrainingError
from garda.training import loop
from garda.training.loop import Phase
from tests.support.errors import told


class Line:
    """Fits a line with noise in every step, so that a lost or repeated random number shows."""

    def __init__(self, inputs: int = 2) -> None:
        self.network = nn.Linear(inputs, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)

    def state(self):
        return {"network": self.network, "optimizer": self.optimizer}

    def step(self, batch: Tensor, step: int):
        loss = (self.network(batch + torch.randn_like(batch)) - 1).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"line": loss.detach()}


def batch(step: int) -> Tensor:
    return torch.full((4, 2), float(step))


def phase(folder: Path, seed: int = 1, **others) -> Phase:
    return Phase("0-A-line", folder, seed, **others)


def fit(folder: Path, steps: int, seed: int = 1) -> list[float]:
    """Weights after so many steps."""
    objective = loop.fit(Line, batch, steps, phase(folder, seed))
    return nn.utils.parameters_to_vector(objective.network.parameters()).tolist()


def test_equal_seeds_give_equal_weights_whatever_came_before(tmp_path: Path):
    first = fit(tmp_path / "a", 5)
    torch.randn(17)
    assert fit(tmp_path / "b", 5) == first
    assert fit(tmp_path / "c", 5, seed=2) != first


def test_a_killed_phase_ends_with_equal_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, steps = fit(tmp_path / "whole", 9), []

    def die(step: int) -> Tensor:
        if step == 6:
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        loop.fit(Line, die, 9, phase(tmp_path / "killed", checkpoint_seconds=0))
    step = Line.step
    monkeypatch.setattr(Line, "step", lambda line, drawn, index: (steps.append(index), step(line, drawn, index))[1])
    for expected in ([6, 7, 8], []):
        assert fit(tmp_path / "killed", 9) == whole
        assert steps == expected
        steps.clear()


def test_a_stop_comes_after_a_checkpoint(tmp_path: Path):
    stopped = phase(tmp_path)

    class Stopped(Line):
        def step(self, batch: Tensor, step: int):
            if step == 3:
                stopped.stopping.exit_code = 75
            return super().step(batch, step)

    with pytest.raises(Interrupted, match="0-A-line: stopped on request; run the same command again") as caught:
        loop.fit(Stopped, batch, 9, stopped)
    assert caught.value.exit_code == 75
    assert torch.load(stopped.checkpoint, weights_only=True)["step"] == 4


def test_the_next_batch_is_drawn_while_a_step_is_learnt(tmp_path: Path):
    """Each batch is waited for in the step before its own: a loop that draws afterwards would wait in vain."""
    drawn = [threading.Event() for _ in range(4)]

    def draw(step: int) -> Tensor:
        drawn[step].set()
        return batch(step)

    class Waiting(Line):
        def step(self, batch: Tensor, step: int):
            assert step == 3 or drawn[step + 1].wait(10)
            assert step > 1 or not drawn[step + 2].is_set()
            return super().step(batch, step)

    loop.fit(Waiting, draw, 4, phase(tmp_path))


def test_a_loss_that_is_no_number_names_phase_loss_and_step(tmp_path: Path):
    with pytest.raises(TrainingError, match="0-A-line, step 2: loss 'line' is nan; lower the"):
        loop.fit(Line, lambda step: batch(step) * (math.nan if step == 2 else 1), 5, phase(tmp_path))


def test_losses_are_logged_a_bounded_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logged, told = [], []
    monkeypatch.setattr(loop, "LOSS_POINTS", 5)
    listening = {"log": lambda step, losses: logged.append(step), "progress": lambda *now: told.append(now)}
    loop.fit(Line, batch, 11, phase(tmp_path, **listening))
    assert logged == [0, 3, 6, 9] and told == [(step, 11) for step in range(1, 12)]


def test_no_flipped_bit_of_a_checkpoint_is_learnt_on_with(tmp_path: Path):
    here = phase(tmp_path)
    expected = loop.fit(Line, batch, 3, here).network.state_dict()
    whole, found = here.checkpoint.read_bytes(), 0
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        here.checkpoint.write_bytes(flipped)
        try:
            again = loop.fit(Line, batch, 3, here).network.state_dict()
        except CheckpointError:
            found += 1
        else:  # between the parts of the file
            assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    assert found > len(whole) // 14


def test_damaged_and_foreign_checkpoints(tmp_path: Path):
    here = phase(tmp_path)
    loop.fit(Line, batch, 3, here)
    whole = here.checkpoint.read_bytes()
    here.checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is truncated or damaged; delete it to repeat") as caught:
        loop.fit(Line, batch, 5, here)
    assert caught.value.where == str(here.checkpoint)
    assert here.checkpoint.stat().st_size == len(whole) // 2
    here.checkpoint.write_bytes(whole)
    assert "was written with seed 1, not 2" in told(CheckpointError, fit, tmp_path, 5, seed=2)
    assert "belongs to another configuration" in told(CheckpointError, loop.fit, partial(Line, 3), batch, 5, here)


def test_no_space_left_is_one_line_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = phase(tmp_path)
    loop.fit(Line, batch, 3, here)
    before = here.checkpoint.read_bytes()

    def full(*args, **others):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunFolderError, match="no space left on the device; free some space") as caught:
        loop.fit(Line, batch, 5, here)
    assert caught.value.where == str(here.checkpoint)
    assert here.checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
