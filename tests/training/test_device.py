import ctypes
import platform
from pathlib import Path

import pytest
import torch

from garda.core.errors import ConfigError
from garda.training import device
from garda.training.device import Compute, ComputeSettings

BYTES = 2**26  # more than malloc would ever put on the heap by itself
COMPUTE = Compute(ComputeSettings(accelerator="cpu"))  # which tells malloc what to do
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told what to do")


def heap() -> range:
    """From the heap's first address, of several mappings perhaps, to where it ends now."""
    first = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
    sbrk = ctypes.CDLL(None).sbrk
    sbrk.restype, sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    return range(int(first.partition("-")[0], 16), sbrk(0))


@glibc
def test_large_tensors_lie_on_the_heap():
    assert torch.empty(BYTES, dtype=torch.uint8).data_ptr() in heap()


@glibc
def test_the_heap_does_not_shrink():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(2**30)  # never touched, so never there
    grown = heap().stop
    libc.free(block)
    assert block in heap() and heap().stop == grown


def test_another_libc_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError("no such library")

    for found in (missing, lambda name: object()):
        monkeypatch.setattr("garda.training.device.ctypes.CDLL", found)
        device.set_allocation({1: 0})


def test_a_device_that_is_not_there(monkeypatch):
    for name, module in (("cuda", "cuda"), ("mps", "backends.mps")):
        monkeypatch.setattr(f"torch.{module}.is_available", lambda: False)
        with pytest.raises(ConfigError, match=f"compute.accelerator: no {name.upper()} device is available"):
            Compute(ComputeSettings(accelerator=name))


def test_bfloat16_is_taken_where_the_processor_has_it(monkeypatch):
    for has, taken in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "has_bfloat16", lambda kind, has=has: has)
        for precision, dtype in (("auto", taken), ("bf16", torch.bfloat16), ("32", torch.float32)):
            compute = Compute(ComputeSettings(accelerator="cpu", precision=precision))
            with compute.autocast():
                found = torch.nn.Conv2d(1, 2, 3)(torch.rand(1, 1, 8, 8)).dtype
            assert compute.dtype == found == dtype
