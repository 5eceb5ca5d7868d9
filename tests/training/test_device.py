from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import pytest
import torch

from garda.training import device
from garda.training.device import Compute, ComputeSettings

BYTES = 2**26  # more than malloc would ever put on the heap by itself


@pytest.fixture(autouse=True)
def a_cpu():
    Compute(ComputeSettings(accelerator="cpu"))


def heap() -> range:
    """From the heap's first address, of several mappings perhaps, to where it ends now."""
    first = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
    sbrk = ctypes.CDLL(None).sbrk
    sbrk.restype, sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    return range(int(first.partition("-")[0], 16), sbrk(0))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told what to do")
def test_large_tensors_lie_on_the_heap():
    assert torch.empty(BYTES, dtype=torch.uint8).data_ptr() in heap()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told what to do")
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

    monkeypatch.setattr("garda.training.device.ctypes.CDLL", missing)
    device.set_allocation({1: 0})
    monkeypatch.setattr("garda.training.device.ctypes.CDLL", lambda name: object())
    device.set_allocation({1: 0})
