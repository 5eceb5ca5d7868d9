"""Where and how numbers are computed: device, precision and memory format, through Lightning Fabric.

Training code asks for ``prepare`` and ``autocast`` and never names a device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from garda import parallel
from garda.config import Config
from garda.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


class ComputeSettings(Config):
    """Device and precision.

    Attributes:
        accelerator: ``auto`` takes a GPU where there is one.
        precision: ``bf16`` computes convolutions in bfloat16 and keeps weights, losses and statistics in float32.
        threads: CPU threads; None leaves torch's own choice. Equal results need an equal number.
        deterministic: let torch take deterministic operations on a GPU where it has them, at a price in speed, and
            name in a warning each one that it does not have.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["bf16", "32"] = "bf16"
    threads: int | None = Field(default=None, gt=0)
    deterministic: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """YAML reads an unquoted 32 as a number."""
        return str(value) if isinstance(value, int) else value


class Compute:
    """One process's device and precision."""

    def __init__(self, settings: ComputeSettings) -> None:
        """Claim the device.

        Raises:
            ConfigError: the device is not there.
        """
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment

        parallel.quieten()
        if settings.accelerator == "cuda" and not torch.cuda.is_available():
            raise ConfigError("compute.accelerator", "no CUDA device is available", "use auto or cpu")
        if settings.accelerator == "mps" and not torch.backends.mps.is_available():
            raise ConfigError("compute.accelerator", "no MPS device is available", "use auto or cpu")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
        precision: Any = {"bf16": "bf16-mixed", "32": "32-true"}[settings.precision]
        self._fabric = Fabric(
            accelerator=settings.accelerator,
            devices=[parallel.local_rank()] if _has_gpus(settings.accelerator) else 1,
            precision=precision,
            plugins=LightningEnvironment(),  # one process is one device here, whatever a cluster has started
        )
        if self.device.type == "cuda" and settings.precision == "bf16" and not _computes_bf16():
            raise ConfigError("compute.precision", "this GPU cannot compute in bfloat16", "use '32'")

    @property
    def device(self) -> torch.device:
        """The device that holds networks and batches."""
        return self._fabric.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it, convolutions and matrix products run in the chosen precision."""
        return self._fabric.autocast()

    def prepare(self, module: M) -> M:
        """``module`` on the device, its convolution weights channels-last."""
        return module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def place(self, image: Tensor) -> Tensor:
        """(B, C, H, W) on the device, channels-last."""
        return image.to(device=self.device, memory_format=torch.channels_last, non_blocking=True)


def _has_gpus(accelerator: str) -> bool:
    return accelerator in ("auto", "cuda") and torch.cuda.is_available()


def _computes_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
