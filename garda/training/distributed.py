"""One run on several devices: a process for each, launched through Lightning Fabric, that share every batch.

The first process leads: it checks, judges, scores and writes. The others follow: they do nothing but learn along, in
the stages that the leader calls. How they share a batch: :mod:`garda.training.sharding`.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from garda.core.errors import ConfigError, Interrupted, TrainingError
from garda.core.signals import LEADER, Stopping

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PATIENCE = timedelta(days=7)  # followers wait while the leader scores; one that has died is noticed by its launcher


class _Crew:
    """What this process knows of the others."""

    fabric: Fabric | None = None  # None for a run of one device
    stopping: Stopping | None = None  # the leader's; no signal may part it from the others in the middle of a message
    learning = False
    dismissed = False
    parted = False  # the processes are no longer at the same place, so that nobody may wait for another


_crew = _Crew()


def enlist(devices: int, nodes: int, accelerator: str) -> bool:
    """Find out which process of the run this is; nothing is started yet.

    Args:
        devices: processes, and devices, a node.
        nodes: machines.
        accelerator: as :class:`garda.training.device.ComputeSettings` names it.

    Returns:
        whether this process leads.

    Raises:
        ConfigError: so many devices are not there, the cluster's settings say something else, or the port by which the
            processes would meet is in use.
    """
    if devices * nodes == 1:
        return True
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    quieten()
    try:
        strategy = DDPStrategy(timeout=PATIENCE)
        fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
    except (ValueError, RuntimeError, KeyError) as error:
        _check_devices(devices, accelerator)
        raise _unfit(error) from None
    if fabric.world_size != devices * nodes:
        raise _unfit(f"processes that are there: {fabric.world_size}, wanted: {devices} devices on {nodes} machines")
    if not _started_elsewhere(fabric):
        _check_devices(devices, accelerator)
        _check_meeting(nodes)
    _crew.fabric, _crew.parted, _crew.dismissed = fabric, False, False
    if fabric.global_rank == 0:
        return True
    if LEADER in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[LEADER]),), daemon=True).start()
    return False


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
            raise ConfigError(name, "is not set, and tells several machines where they meet", "see docs/cluster.md")
    port = os.environ.get("MASTER_PORT", "0")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ConfigError(
            "MASTER_PORT", f"expected a port's number, got {port!r}", "set it to a free port, or unset it"
        )


def _end_with(parent: int) -> None:
    """A follower ends when the process that started it has ended, however that came about."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _launch() -> None:
    """Start the other processes of this node and meet all."""
    if _crew.fabric is None:
        return
    from lightning_fabric.utilities.distributed import _destroy_dist_connection

    threads = torch.get_num_threads() if _started_elsewhere(_crew.fabric) else 0
    if not threads:
        os.environ[LEADER] = str(os.getpid())
    try:
        _crew.fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise _unfit(error) from None
    # Fabric would take leave of the others at the process's end, and wait for them, though they may be elsewhere
    atexit.unregister(_destroy_dist_connection)
    if threads:  # a cluster has shared out the cores already; Fabric would do it once more
        torch.set_num_threads(threads)


def local_rank() -> int:
    """The number of this process's device on its node."""
    return 0 if _crew.fabric is None else _crew.fabric.local_rank


def is_follower() -> bool:
    """Whether another process leads."""
    return _crew.fabric is not None and _crew.fabric.global_rank > 0


def count() -> int:
    """The number of processes of the run."""
    return 1 if _crew.fabric is None else _crew.fabric.world_size


@contextmanager
def together() -> Iterator[None]:
    """The block in which all processes are at the same place and learn one thing."""
    _crew.learning = distributed.is_initialized()
    try:
        yield
    except (TrainingError, Interrupted):
        raise  # in all of them at once
    except BaseException:
        _crew.parted = True
        raise
    finally:
        _crew.learning = False


def world_size() -> int:
    """Among how many processes a batch is shared: 1 outside of :func:`together`."""
    return distributed.get_world_size() if _crew.learning else 1


def largest(number: int) -> int:
    """The largest of all processes' numbers."""
    if world_size() == 1 or _crew.fabric is None:
        return number
    found = torch.tensor(number, device=_crew.fabric.device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return int(found)


def broadcast(value: Any) -> Any:
    """What the leader gives, in every process; followers give None.

    Returns:
        any object that can be pickled; for followers, None once the leader has dismissed them, wherever they are.
    """
    if not distributed.is_initialized() or _crew.parted or _crew.dismissed:
        return value
    held = [value]
    with nullcontext() if _crew.stopping is None else _crew.stopping.deferred():
        distributed.broadcast_object_list(held, src=0)
    _crew.dismissed = held[0] is None
    return held[0]


@contextmanager
def leading(stopping: Stopping, needed: bool) -> Iterator[None]:
    """The leader's work between meeting the others and dismissing them.

    Args:
        stopping: what hears of signals.
        needed: whether there is anything to learn; if not, processes that nobody has started yet are not started.

    Raises:
        ConfigError: the processes cannot meet, or another one has failed in the block.
    """
    _crew.stopping = stopping
    try:
        if needed or (_crew.fabric is not None and _started_elsewhere(_crew.fabric)):
            _launch()
        yield
    except RuntimeError as error:
        if count() == 1 or not _is_lost(error):
            raise
        _crew.parted = True
        raise ConfigError("--devices", "another process of the run has failed", "look at what it has said") from None
    finally:
        broadcast(None)
        _leave()


@contextmanager
def following(stopping: Stopping) -> Iterator[None]:
    """A follower's whole work; that the leader was stopped or has failed is the leader's to tell.

    Args:
        stopping: hears of no signal from here on; a terminal and a cluster send theirs to every process.
    """
    stopping.ignore()
    try:
        _launch()
        yield
    except RuntimeError as error:
        _crew.parted = True
        if not _is_lost(error):
            raise
    except BaseException:
        _crew.parted = True
        raise
    finally:
        _leave()


def _is_lost(error: RuntimeError) -> bool:
    """gloo's and NCCL's word for a process that has gone."""
    return "onnection" in str(error)


def call(domain: str) -> None:
    """The leader begins to learn a domain, and the followers along with it."""
    broadcast(domain)


def calls() -> Iterator[str]:
    """A follower's work: the domains that the leader calls, until it dismisses."""
    while (domain := broadcast(None)) is not None:
        yield domain


def _leave() -> None:
    if distributed.is_initialized() and not _crew.parted:
        distributed.destroy_process_group()
