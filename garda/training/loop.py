"""The only training loop: seeded step by step, checkpointed, and exactly resumable.

Every step's random numbers are a function of the phase's seed and the step's number, so that a run which was killed at
any moment and goes on from an older checkpoint repeats the lost steps bit by bit.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from garda.core.errors import Interrupted, TrainingError
from garda.core.seeds import derive_seed
from garda.core.signals import Stopping
from garda.training import checkpoint, distributed, sharding
from garda.training.checkpoint import Stateful

_Tensors = tuple[Tensor, ...] | list[Tensor]

Note = float | str
LOSS_POINTS = 500  # logged points of one loss in one phase, at most


class Objective(Protocol):
    """What one phase learns: networks, losses and optimizers."""

    def state(self) -> Mapping[str, Stateful]:
        """Everything that changes from step to step, by name; a checkpoint holds exactly this."""

    def step(self, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Learn from one batch and return each loss as a detached scalar, by name."""


@dataclass(frozen=True)
class Phase:
    """One training of a stage, such as that of its generator, and its folder.

    Attributes:
        name: such as ``1-SiteB-generator``.
        folder: where the checkpoint lies.
        seed: the phase's seed; everything random follows from it.
        stopping: asked after every step.
        log: receives (step, losses), at most ``LOSS_POINTS`` times.
        progress: receives (steps done, steps in all) after every step.
        checkpoint_seconds: time between two checkpoints.
        before: seconds that were spent before the checkpoint, if there is one.
        spent: receives the seconds of training at every checkpoint and at the end, ``before`` included.
        note: receives what the phase has found out, for the record; a phase that is repeated notes it again.
    """

    name: str
    folder: Path
    seed: int
    stopping: Stopping = field(default_factory=Stopping)
    log: Callable[[int, Mapping[str, float]], None] = lambda step, losses: None
    progress: Callable[[int, int], None] = lambda done, total: None
    checkpoint_seconds: float = 60.0
    before: float = 0.0
    spent: Callable[[float], None] = lambda seconds: None
    note: Callable[[Mapping[str, Note]], None] = lambda found: None

    @property
    def checkpoint(self) -> Path:
        """The phase's only checkpoint."""
        return self.folder / "checkpoint.pt"


O = TypeVar("O", bound=Objective)  # noqa: E741


def fit(
    build: Callable[[], O],
    batch: Callable[[int], Any],
    steps: int,
    phase: Phase,
    finished: Callable[[O], bool] = lambda objective: False,
) -> O:
    """Build an objective inside the seeded phase and train it, or go on where a checkpoint ends.

    Of several processes (:mod:`garda.training.distributed`) all learn, and the checkpoints of rank zero count.

    Args:
        build: makes the objective; called after seeding, since networks draw their first weights from it.
        batch: the batch of a step, a pure function of the step's number, called in a thread of its own while the step
            before is computed.
        steps: number of steps.
        phase: folder, seed and what listens.
        finished: whether the objective ends before the last step; asked after each, and the same in all processes.

    Returns:
        The trained objective; its last checkpoint stays until the phase's folder is removed.

    Raises:
        CheckpointError: the checkpoint is truncated or of another configuration.
        TrainingError: a loss is not finite; names phase, loss and step.
        Interrupted: a stop was asked for; a checkpoint has been written.

    >>> from tempfile import TemporaryDirectory
    >>> class Line:  # learns to answer 1
    ...     def __init__(self):
    ...         self.network = torch.nn.Linear(2, 1)
    ...         self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1)
    ...     def state(self):
    ...         return {"network": self.network, "optimizer": self.optimizer}
    ...     def step(self, batch, step):
    ...         loss = (self.network(batch) - 1).square().mean()
    ...         backward_step(self.optimizer, loss)
    ...         return {"line": loss.detach()}
    >>> with TemporaryDirectory() as folder:
    ...     line = fit(Line, lambda step: torch.ones(4, 2), steps=20, phase=Phase("line", Path(folder), seed=0))
    >>> round(line.network(torch.ones(2)).item(), 2)
    1.0
    """
    torch.manual_seed(derive_seed(phase.seed, "build"))
    objective = build()
    step = checkpoint.restore(objective.state, phase.seed, phase.checkpoint)
    started = time.monotonic() - (phase.before if step else 0.0)
    if step < steps and not finished(objective):
        _learn(objective, batch, range(step, steps), phase, started, finished)
    phase.spent(time.monotonic() - started)
    return objective


def _learn(
    objective: O, batch: Callable[[int], Any], left: range, phase: Phase, started: float, finished: Callable[[O], bool]
) -> None:
    """The steps that are left, and the checkpoints; ``started`` is when learning would have begun without a break."""
    stride, saved = max(1, -(-left.stop // LOSS_POINTS)), time.monotonic()
    with phase.stopping.deferred(), distributed.together(), prefetch(left, batch) as batches:
        for step, drawn in zip(left, batches, strict=False):
            torch.manual_seed(derive_seed(phase.seed, step))
            losses = _checked(objective.step(drawn, step), phase, step)
            if step % stride == 0:
                phase.log(step, losses)
            last = step + 1 == left.stop or finished(objective)
            phase.progress(left.stop if last else step + 1, left.stop)
            asked = distributed.largest(phase.stopping.exit_code or 0)  # a later signal is for the next step to see
            if asked or last or time.monotonic() - saved > phase.checkpoint_seconds:
                checkpoint.save(objective.state(), step + 1, phase.seed, phase.checkpoint)
                phase.spent(time.monotonic() - started)
                saved = time.monotonic()
            if asked:
                raise Interrupted(phase.name, asked)
            if last:
                break


def backward_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down a loss that is this process's mean over its part of the batch."""
    optimizer.zero_grad()
    loss.backward()
    sharding.average_gradients(weight for group in optimizer.param_groups for weight in group["params"])
    optimizer.step()


def _checked(losses: Mapping[str, Tensor], phase: Phase, step: int) -> dict[str, float]:
    values = dict(zip(losses, sharding.mean(torch.stack([*losses.values()])).tolist(), strict=True))
    remedy = "lower the learning rate, or use compute.precision '32'"
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"{phase.name}, step {step}", f"loss {name!r} is {value}", remedy)
    return values


def cosine_lr(
    optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int, *, warm_up: int = 0, decay: bool = True
) -> None:
    """Set a step's learning rate, a function of the step alone, so that nothing else needs to be kept.

    Args:
        optimizer: all of its groups are set.
        rate: the highest.
        step: the step's number.
        steps: number of steps; the rate falls to 0 over them by a cosine.
        warm_up: steps over which the rate rises by a line.
        decay: False for a rate that does not fall.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    >>> for step in (0, 5, 10):
    ...     cosine_lr(optimizer, 1.0, step, steps=10)
    ...     print(round(optimizer.param_groups[0]["lr"], 3))
    1.0
    0.5
    0.0
    """
    falling = (1 + math.cos(math.pi * step / steps)) / 2 if decay else 1.0
    rising = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    for group in optimizer.param_groups:
        group["lr"] = rate * falling * rising


def average_by(decay: Callable[[int], float]) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """For :class:`torch.optim.swa_utils.AveragedModel`: ``decay`` of the average, by the number of updates before."""

    def update(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        get_ema_multi_avg_fn(decay(int(count)))(averaged, current, count)

    return update


def ema(steps: int) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """For :class:`torch.optim.swa_utils.AveragedModel`: a plain mean at first, then exponential over ``steps``."""
    return average_by(lambda count: 1 - 1 / min(count + 1, steps))


T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def prefetch(items: Iterable[T], read: Callable[[T], R]) -> Iterator[Iterator[R]]:
    """What ``read`` makes of each item, in their order; within the block a thread reads at most one item ahead.

    An error of ``read`` is raised when its item's turn comes. A block that ends early, by an error or a signal, waits
    for the item that is being read, so that ``read`` removes what it has unpacked, and begins no other.

    >>> with prefetch([1, 2, 3], lambda item: item * 10) as read:
    ...     list(read)
    [10, 20, 30]
    """
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
    reading = (reader.submit(read, item) for item in items)
    try:
        yield (future.result() for future, _ in pairwise(chain(reading, [Future[R]()])))  # nobody asks for the last
    finally:
        reader.shutdown(cancel_futures=True)


@contextmanager
def silenced() -> Iterator[None]:
    """No warning is heard within the block, in whichever thread.

    Python's filters are common to all threads: of two that change them at a time one undoes what the other has set, and
    a warning that quotes a DICOM header would be printed.
    """
    with warnings.catch_warnings(action="ignore"):
        yield
