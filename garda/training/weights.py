"""Network weights as safetensors files, which hold tensors and no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from garda.core import files
from garda.core.errors import CheckpointError, printable

N = TypeVar("N", bound=nn.Module)
HALF = torch.finfo(torch.float16)


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; errors as in :func:`garda.core.files.replacing`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_weights(Path(folder) / "w.safetensors", {"weight": torch.ones(2)})
    ...     read_weights(Path(folder) / "w.safetensors")
    {'weight': tensor([1., 1.])}
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with files.replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors; no code of the file is executed. Errors as in :func:`load_weights`."""
    try:
        tensors = safetensors.torch.load(files.read_bytes(path))
    except FileNotFoundError:
        raise CheckpointError(path, "no such file", "copy the whole folder") from None
    except (SafetensorError, OSError):
        raise CheckpointError(path, "is truncated or damaged", "copy the file again") from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()) or (name.endswith("running_var") and bool((tensor < 0).any())):
            raise CheckpointError(
                path, f"{printable(name)} holds what is no number, or no variance", "ask for it again"
            )
    return tensors


def load_weights(path: Path, network: N, renamed: Mapping[str, str] | None = None) -> N:
    """Fill ``network`` and put it into evaluation mode.

    Args:
        path: a safetensors file.
        network: of the same architecture.
        renamed: beginnings of names that older files have, and what they are now.

    Raises:
        CheckpointError: the file is missing, truncated, holds what is not finite or belongs to another network.
    """
    another = CheckpointError(path, "holds weights of another network", "use the settings it was trained with")
    weights, own = read_weights(path), network.state_dict()
    for old, new in (renamed or {}).items():
        weights = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in weights.items()}
    half = torch.float16, torch.float32  # in a file float16 serves where it takes up half the room
    kinds = [(tensor.dtype, own[name].dtype) for name, tensor in weights.items() if name in own]
    if not all(found == wanted or (found, wanted) == half for found, wanted in kinds):
        raise another
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise another from None
    return network.eval()


def round_weights(network: nn.Module) -> None:
    """Round float32 weights to the nearest values that float16 holds, in place.

    A tensor stays as it is whose largest value is beyond float16's range, or below its normal numbers, where little
    would be left of it.
    """
    for tensor in network.state_dict().values():
        if tensor.dtype == torch.float32 and HALF.tiny <= float(tensor.abs().max()) <= HALF.max:
            tensor.copy_(tensor.half())


def halve(tensor: Tensor) -> Tensor:
    """A float32 tensor as float16 where that loses nothing; any other as it is.

    >>> halve(torch.tensor([0.5])).dtype, halve(torch.tensor([0.1])).dtype
    (torch.float16, torch.float32)
    """
    short = tensor.half()
    return short if tensor.dtype == torch.float32 and torch.equal(short.float(), tensor) else tensor
