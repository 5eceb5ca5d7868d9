"""One run on several devices: a process for each, launched through Lightning Fabric, that share every batch.

All processes run one program. What is looked at, judged, scored or written once, rank zero does
(:func:`on_rank_zero`), and the others are given what came of it. How they share a batch:
:mod:`garda.training.sharding`.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from garda.core.errors import ConfigError, Interrupted, TrainingError
from garda.core.signals import LEADER, Stopping
from garda.training import meeting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait while rank zero scores; one that has died is noticed by its launcher


class _World:
    """What this process knows of the others."""

    fabric: Fabric | None = None  # None for a run of one device
    starts_here = False  # this process starts all others, on its machine
    stopping: Stopping | None = None  # rank zero's; no signal may part it from the others in the middle of a message
    learning = False
    parted = False  # the processes are no longer at the same place, so that nobody may wait for another
    ended = False  # rank zero has dismissed the others


class _Ended(BaseException):
    """Rank zero has ended, here or for good; it has told why."""


_world = _World()


def configure(devices: int, nodes: int, accelerator: str) -> bool:
    """Find out which process of a run this is; nothing is started yet.

    Args:
        devices: processes, and devices, a node.
        nodes: machines.
        accelerator: as :class:`garda.training.device.ComputeSettings` names it.

    Returns:
        whether it is rank zero.

    Raises:
        ConfigError: so many devices are not there, or the cluster's settings say something else.
    """
    if devices * nodes == 1:
        return True
    from lightning_fabric import Fabric

    quieten()
    try:
        strategy = meeting.make_strategy(_surroundings(), PATIENCE)
        fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
    except (ValueError, RuntimeError, KeyError) as error:
        _check_devices(devices, accelerator)
        raise _unfit(error) from None
    if fabric.world_size != devices * nodes:
        raise _unfit(f"processes that are there: {fabric.world_size}, wanted: {devices} devices on {nodes} machines")
    if not _started_elsewhere(fabric):
        _check_devices(devices, accelerator)
        _check_meeting(nodes)
    _world.fabric, _world.starts_here = fabric, nodes == 1 and not _started_elsewhere(fabric)
    if fabric.global_rank > 0 and LEADER in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[LEADER]),), daemon=True).start()
    return fabric.global_rank == 0


def _surroundings() -> Any:
    """What starts the processes: this program, unless a cluster's variables say that it has; to ask Fabric of Slurm
    would print its advice wherever ``srun`` is installed."""
    from lightning_fabric.plugins.environments import (
        LightningEnvironment,
        LSFEnvironment,
        MPIEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
        if (kind is not SLURMEnvironment or "SLURM_NTASKS" in os.environ) and kind.detect():
            return kind()
    return LightningEnvironment()


def quieten() -> None:
    """Keep Fabric from greeting at every start."""
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _unfit(error: object) -> ConfigError:
    what = (str(error).splitlines() or ["the processes cannot be started"])[0]
    return ConfigError("--devices", what, "ask the cluster for as many tasks a node as devices, and start them by srun")


def _started_elsewhere(fabric: Fabric) -> bool:
    """Whether a cluster, or a launching process, has started this one."""
    strategy: Any = fabric.strategy
    return bool(strategy.cluster_environment.creates_processes_externally)


def _check_devices(devices: int, accelerator: str) -> None:
    gpus = torch.cuda.device_count() if accelerator in ("auto", "cuda") else 0
    if accelerator == "mps" or (accelerator == "auto" and not gpus and torch.backends.mps.is_available()):
        found, what = 1, "an MPS device is one"
    elif gpus or accelerator == "cuda":
        found, what = gpus, f"CUDA devices: {gpus} found"
    else:
        found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        what = f"a process needs a core of its own: {found} found"
    if devices > found:
        raise ConfigError("--devices", f"{devices} are asked for; {what}", f"use at most {found}")


def _check_meeting(nodes: int) -> None:
    """Where the processes that this one starts would meet."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if nodes > 1 else ():
        if name not in os.environ:
            raise ConfigError(
                name, "is not set, and tells several machines where they meet", "see docs/hospital/cluster.md"
            )
    port = os.environ.get("MASTER_PORT", "0")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ConfigError(
            "MASTER_PORT", f"expected a port's number, got {port!r}", "set it to a free port, or unset it"
        )


def _end_with(parent: int) -> None:
    """A process ends when the one that started it has ended, however that came about."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _launch() -> None:
    """Start the other processes of this node and meet all."""
    if _world.fabric is None:
        return
    from lightning_fabric.utilities.distributed import _destroy_dist_connection

    threads = torch.get_num_threads() if _started_elsewhere(_world.fabric) else 0
    if not threads:
        os.environ[LEADER] = str(os.getpid())
    try:
        _world.fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise _unfit(error) from None
    # Fabric would take leave of the others at the process's end, and wait for them, though they may be elsewhere
    atexit.unregister(_destroy_dist_connection)
    if threads:  # a cluster has shared out the cores already; Fabric would do it once more
        torch.set_num_threads(threads)


def local_rank() -> int:
    """The number of this process's device on its node."""
    return 0 if _world.fabric is None else _world.fabric.local_rank


def is_rank_zero() -> bool:
    """Whether this process looks, judges, scores and writes for all."""
    return _world.fabric is None or _world.fabric.global_rank == 0


def count() -> int:
    """The number of processes of the run."""
    return 1 if _world.fabric is None else _world.fabric.world_size


@contextmanager
def together() -> Iterator[None]:
    """The block in which all processes are at the same place and learn one thing."""
    _world.learning = distributed.is_initialized()
    try:
        yield
    except (TrainingError, Interrupted):
        raise  # in all of them at once
    except BaseException:
        _world.parted = True
        raise
    finally:
        _world.learning = False


def world_size() -> int:
    """Among how many processes a batch is shared: 1 outside of :func:`together`."""
    return distributed.get_world_size() if _world.learning else 1


def largest(number: int) -> int:
    """The largest of all processes' numbers."""
    if world_size() == 1 or _world.fabric is None:
        return number
    found = torch.tensor(number, device=_world.fabric.device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return int(found)


def on_rank_zero(compute: Callable[[], T]) -> T:
    """What rank zero computes, in every process; it must be of a kind that can be pickled."""
    found = compute() if is_rank_zero() else None
    return _broadcast((found, False))[0]  # type: ignore[return-value]


def _broadcast(message: tuple[T, bool]) -> tuple[T, bool]:
    """Rank zero's (value, whether it has ended) in every process; where it has ended, the others end too."""
    if not distributed.is_initialized() or _world.parted or _world.ended:
        return message
    held = [message]
    with nullcontext() if _world.stopping is None else _world.stopping.deferred():
        distributed.broadcast_object_list(held, src=0)
    _world.ended = held[0][1]
    if _world.ended and not is_rank_zero():
        raise _Ended
    return held[0]


@contextmanager
def running(stopping: Stopping, needed: bool) -> Iterator[None]:
    """The block that all processes of a run go through; of what ends it early, rank zero tells.

    Args:
        stopping: what hears of signals; those of a terminal and a cluster reach every process, and count at rank zero.
        needed: whether there is anything to learn; if not, processes that nobody has started yet are not started.

    Raises:
        ConfigError: the processes cannot meet, or another one has failed in the block.
    """
    _world.stopping, _world.parted, _world.ended = stopping, False, False
    if not is_rank_zero():
        stopping.ignore()
    try:
        private = meeting.at_a_private_place() if needed and _world.starts_here else nullcontext()
        with private, suppress(_Ended), _taking_leave():
            if needed or (_world.fabric is not None and (_started_elsewhere(_world.fabric) or not is_rank_zero())):
                _launch()
            yield
    finally:
        if distributed.is_initialized() and not _world.parted:
            distributed.destroy_process_group()


@contextmanager
def _taking_leave() -> Iterator[None]:
    """At its end rank zero dismisses the others, which wait for that; rank zero says what went wrong."""
    try:
        yield
    except (_Ended, TrainingError, Interrupted):
        if is_rank_zero():
            raise
    except BaseException as error:
        lost = isinstance(error, RuntimeError) and count() > 1 and _is_lost(error)
        _world.parted = lost or not is_rank_zero()
        if not lost:
            raise
        if is_rank_zero():
            what = "another process of the run has failed"
            raise ConfigError("--devices", what, "look at what it has said") from None
    finally:
        _broadcast((None, True))


def _is_lost(error: RuntimeError) -> bool:
    """gloo's and NCCL's word for a process that has gone."""
    return "onnection" in str(error)
