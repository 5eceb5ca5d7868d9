"""Network weights as safetensors files, which hold tensors and no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from garda.errors import CheckpointError
from garda.files import replacing

N = TypeVar("N", bound=nn.Module)


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; errors as in :func:`garda.files.replacing`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors; no code of the file is executed. Errors as in :func:`load_weights`."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(path, "no such file", "copy the whole folder") from None
    except (SafetensorError, OSError):
        raise CheckpointError(path, "is truncated or damaged", "copy the file again") from None


def load_weights(path: Path, network: N) -> N:
    """Fill ``network`` and put it into evaluation mode.

    Raises:
        CheckpointError: the file is missing, truncated or belongs to another network.
    """
    try:
        network.load_state_dict(read_weights(path))
    except RuntimeError:
        raise CheckpointError(
            path, "holds weights of another network", "use the settings it was trained with"
        ) from None
    return network.eval()
