"""Where and how numbers are computed: device, precision and memory format, through Lightning Fabric.

Training code asks for ``prepare`` and ``autocast`` and never names a device.
"""

import ctypes
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from garda.core.config import Config
from garda.core.errors import ConfigError
from garda.training import distributed

M = TypeVar("M", bound=nn.Module)
# options of mallopt(3): what may be free at the heap's end before it goes back to the system (-1: anything), how much
# more than is needed the heap grows by, and how many blocks may lie outside of it
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
REUSED = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**28}


class ComputeSettings(Config):
    """Device and precision.

    Attributes:
        accelerator: ``auto`` takes a GPU where there is one.
        precision: ``bf16`` computes convolutions in bfloat16 and keeps weights, losses and statistics in float32;
            ``auto`` does so where the device has instructions for it, and uses ``32`` elsewhere, where bfloat16 is
            imitated and many times slower.
        threads: CPU threads; None leaves torch's own choice. Equal results need an equal number.
        deterministic: let torch take deterministic operations on a GPU where it has them, at a price in speed, and
            name in a warning each one that it does not have.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "bf16", "32"] = "auto"
    threads: int | None = Field(default=None, gt=0, le=1024)
    deterministic: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """YAML reads an unquoted 32 as a number."""
        return str(value) if isinstance(value, int) else value


class Compute:
    """One process's device and precision.

    Attributes:
        dtype: of convolutions and matrix products.

    >>> compute = Compute(ComputeSettings(accelerator="cpu", precision="bf16"))
    >>> with compute.autocast():
    ...     nn.Conv2d(1, 4, 3)(compute.to_device(torch.rand(2, 1, 8, 8))).dtype
    torch.bfloat16
    """

    def __init__(self, settings: ComputeSettings) -> None:
        """Claim the device; on a CPU, let the whole process keep the memory that it frees (:func:`set_allocation`).

        Raises:
            ConfigError: the device is not there.
        """
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment

        distributed.quieten()
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(settings.accelerator, True):
            name = settings.accelerator.upper()
            raise ConfigError("compute.accelerator", f"no {name} device is available", "use auto or cpu")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
        has_gpus = available["cuda"] and settings.accelerator in ("auto", "cuda")
        devices = [distributed.local_rank()] if has_gpus else 1
        kind: str = settings.accelerator
        if kind == "auto":
            kind = next((name for name, here in available.items() if here), "cpu")
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_bfloat16(kind))
        if bf16 and kind == "cuda" and not has_bfloat16(kind):
            raise ConfigError("compute.precision", "this GPU cannot compute in bfloat16", "use auto or '32'")
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        precision: Any = "bf16-mixed" if bf16 else "32-true"
        alone = LightningEnvironment()  # one process is one device here, whatever a cluster has started
        self._fabric = Fabric(accelerator=settings.accelerator, devices=devices, precision=precision, plugins=alone)
        if self.device.type == "cpu":
            set_allocation(REUSED)

    @property
    def device(self) -> torch.device:
        """The device that holds networks and batches."""
        return self._fabric.device

    def describe(self) -> dict[str, str]:
        """What decides last bits, beside settings and seed."""
        return {
            "torch": torch.__version__,
            "device": str(self.device),
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": str(torch.get_num_threads()),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it, convolutions and matrix products run in the chosen precision."""
        return self._fabric.autocast()

    def prepare(self, module: M) -> M:
        """``module`` on the device, its convolution weights channels-last."""
        return module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def to_device(self, image: Tensor) -> Tensor:
        """(B, C, H, W) on the device, channels-last."""
        return image.to(device=self.device, memory_format=torch.channels_last, non_blocking=True)


def has_bfloat16(kind: str) -> bool:
    """Whether ``cuda``, ``mps`` or ``cpu`` has instructions for bfloat16; without them torch imitates it.

    On a processor with AVX2 alone, a convolution takes eleven times as long in bfloat16 as in float32.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    onednn = torch.backends.mkldnn.is_available()  # the library that has them
    return kind != "cpu" or (onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def set_allocation(options: Mapping[int, int]) -> None:
    """Tell glibc's malloc what to do with freed memory; with another libc nothing happens.

    By default each tensor of more than 32 MiB gets fresh pages from the system and gives them back, time and again in
    every step; ``REUSED`` keeps them for the next one, in the main thread, where everything is learnt. It costs memory,
    since holes are not always filled.
    """
    with suppress(AttributeError, OSError):  # another libc
        for option, value in options.items():
            ctypes.CDLL(None).mallopt(option, value)
