"""What a phase that was stopped goes on from: everything that changes from step to step, in one file."""

import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from garda.core import files
from garda.core.errors import CheckpointError
from garda.training import distributed

Stateful = nn.Module | torch.optim.Optimizer  # what a checkpoint can hold


def save(state: Mapping[str, Stateful], step: int, seed: int, path: Path) -> None:
    """Write the state after a number of steps; of several processes rank zero does.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    if distributed.is_rank_zero():
        with files.replacing(path) as temporary:
            temporary.write_bytes(_pack(state, step, seed))


def restore(find: Callable[[], Mapping[str, Stateful]], seed: int, path: Path) -> int:
    """Fill the state that ``find`` gives with what ``path`` holds, in all processes alike.

    Returns:
        the step to go on with, 0 without a file.

    Raises:
        CheckpointError: the file is truncated, damaged, or of another configuration or seed.
    """
    step = _read(find(), seed, path) if distributed.is_rank_zero() and path.exists() else 0
    if distributed.count() == 1:
        return step
    state = find()
    # networks that were built alike may still differ by rounding
    packed = distributed.on_rank_zero(lambda: bytes(_pack(state, step, seed)))
    if distributed.is_rank_zero():
        return step
    saved = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    for name, part in state.items():
        part.load_state_dict(saved["state"][name])
    return int(saved["step"])


def _pack(state: Mapping[str, Stateful], step: int, seed: int) -> memoryview:
    """The same bytes whether the steps were learnt in one go or resumed."""
    kept = {name: _with_one_of_each_word(part.state_dict()) for name, part in state.items()}
    buffer = io.BytesIO()  # torch's own writer hides a full disk behind a RuntimeError
    torch.save({"seed": seed, "step": step, "state": kept}, buffer)
    return buffer.getbuffer()


def _with_one_of_each_word(value: Any) -> Any:
    """Plain dictionaries, lists and tuples with equal strings made one object, as which a pickle names them again."""
    if isinstance(value, Mapping):
        return {_with_one_of_each_word(key): _with_one_of_each_word(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_with_one_of_each_word, value))
    return sys.intern(value) if isinstance(value, str) else value


def _read(state: Mapping[str, Stateful], seed: int, path: Path) -> int:
    remedy = "delete it to repeat the stage from its start"
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None  # torch writes a checksum of each part, and does not look at it
        saved = torch.load(path, map_location="cpu", weights_only=True)
        step, own, kept = (saved[name] for name in ("step", "seed", "state"))
    except Exception:  # torch raises many kinds for a damaged file
        whole = False
    if not whole:
        raise CheckpointError(path, "is truncated or damaged", remedy)
    if own != seed:
        raise CheckpointError(path, f"was written with seed {own}, not {seed}", remedy)
    try:
        for name, part in state.items():
            part.load_state_dict(kept[name])
    except (KeyError, ValueError, RuntimeError):
        raise CheckpointError(path, "belongs to another configuration", remedy) from None
    return int(step)
