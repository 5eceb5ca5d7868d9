"""A measurement: seconds with the device awaited, peak memory, operations, and what the machine can do at most."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from garda.models import unet
from garda.training.device import (
    M_MMAP_MAX,
    M_TOP_PAD,
    M_TRIM_THRESHOLD,
    REUSED,
    Compute,
    ComputeSettings,
    M,
    set_allocation,
)

PROBE = {"cpu": 2048, "cuda": 8192}  # side of the matrices of the practical limit
M_MMAP_THRESHOLD = -3  # of mallopt(3)
# what glibc's own thresholds rise to
FRESH = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 2**17}
PROBES = 5  # products, after one that is not counted
RESET_PEAK = "5"  # what Linux takes for: let VmHWM begin anew (proc(5), /proc/pid/clear_refs)


class Plain(Compute):
    """What a plain implementation computes with: float32, torch's default layout, MONAI's U-Net as it comes.

    For malloc's own ways see :func:`allocate_for`.
    """

    def __init__(self, settings: ComputeSettings) -> None:
        """The device of ``settings``, and nothing else of them."""
        super().__init__(settings.model_copy(update={"precision": "32"}))

    def prepare(self, module: M) -> M:
        """``module`` on the device; what garda computes otherwise than MONAI in its U-Net is as in MONAI again."""
        for part in module.modules():
            if isinstance(part, UpCat):
                part.is_pad = True
        return unet.with_conv_transpose(module).to(device=self.device)

    def to_device(self, image: Tensor) -> Tensor:
        """``image`` on the device."""
        return image.to(device=self.device).contiguous()


def allocate_for(compute: Compute) -> None:
    """Allocate from here on as ``compute`` does, after giving back what is free; with glibc, on a CPU."""
    gc.collect()
    if compute.device.type == "cpu":
        set_allocation(FRESH if isinstance(compute, Plain) else REUSED)
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)


@dataclass(frozen=True)
class Measured:
    """Figures of one kind of step.

    Attributes:
        median: seconds.
        fastest: seconds.
        slowest: seconds.
        peak: bytes, of the device's memory on a GPU, of the process's resident memory on a CPU.
        operations: floating-point operations of a step: multiplications and additions of products and convolutions.
        utilisation: share of time in which a GPU had work, as its driver says; None on a CPU.
    """

    median: float
    fastest: float
    slowest: float
    peak: int
    operations: int
    utilisation: float | None

    @property
    def rate(self) -> float:
        """Floating-point operations a second."""
        return self.operations / self.median


class Operations(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas.

    torch's FlopCounterMode counts the same by module, and cannot be used where gradients are differentiated again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # in inference mode a convolution comes whole
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        result = func(*args, **(kwargs or {}))
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def measure(step: Callable[[int], object], device: torch.device, count: int, warm_up: int = 2) -> Measured:
    """Time ``count`` calls of ``step(index)``, after some that are not timed and one whose operations are counted."""
    for index in range(warm_up):
        step(index)
    with Operations() as operations:
        step(warm_up)
    _wait(device)
    reset_peak(device)
    seconds, busy = [], []
    for index in range(count):
        started = time.perf_counter()
        step(warm_up + 1 + index)
        _wait(device)
        seconds.append(time.perf_counter() - started)
        if device.type == "cuda":
            busy.append(torch.cuda.utilization(device) / 100)
    return Measured(
        statistics.median(seconds),
        min(seconds),
        max(seconds),
        peak(device),
        operations.total,
        statistics.mean(busy) if busy else None,
    )


def matrix_limit(device: torch.device, kind: torch.dtype) -> float:
    """Operations a second of a plain product of square matrices: what the machine gives at most in practice."""
    side = PROBE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(PROBES + 1):
        started = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Let :func:`peak` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)


def peak(device: torch.device) -> int:
    """Most bytes at once: of the device's memory on a GPU, of the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
