"""All that survives a domain, and how it is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from monai.networks.nets import BasicUNet
from safetensors import SafetensorError
from torch import Tensor, nn

from garda.config import Config
from garda.errors import CheckpointError, RunFolderError
from garda.files import describe, read_json, replacing, write_json
from garda.generators.base import Generator

N = TypeVar("N", bound=nn.Module)

STATISTICS_LIMIT = 64 * 1024  # bytes a domain


@dataclass(frozen=True)
class Knowledge:
    """What is kept when a domain's images are gone. Whatever is not in here is gone too.

    Attributes:
        segmenter: the network as of the last stage.
        teacher: the stage-0 segmenter; its encoder also serves as the frozen feature encoder.
        generator: draws every domain met so far; None for methods without replay.
        domains: names of the domains met, in order; the first is the source.
        statistics: a method's few numbers per domain, by domain and name; at most 64 kB a domain.
    """

    segmenter: BasicUNet
    teacher: BasicUNet
    generator: Generator | None
    domains: tuple[str, ...]
    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse statistics that are too large to be called few numbers."""
        for domain, named in self.statistics.items():
            size = sum(tensor.numel() * tensor.element_size() for tensor in named.values())
            if size > STATISTICS_LIMIT:
                raise ValueError(f"statistics of {domain} take {size} bytes, more than {STATISTICS_LIMIT}")

    def save(self, folder: Path) -> None:
        """Write everything into ``folder``, which appears whole or not at all.

        Raises:
            RunFolderError: no space left, or the folder cannot be written.
        """
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            save_weights(draft / "segmenter.safetensors", self.segmenter.state_dict())
            save_weights(draft / "teacher.safetensors", self.teacher.state_dict())
            if self.generator is not None:
                save_weights(draft / "generator.safetensors", self.generator.state_dict())
            flat = {f"{domain}/{name}": t for domain, named in self.statistics.items() for name, t in named.items()}
            save_weights(draft / "statistics.safetensors", flat)
            facts = _Facts(domains=self.domains, generator=self.generator is not None)
            write_json(draft / "knowledge.json", facts.model_dump(mode="json"))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(draft, folder)
        except OSError as error:
            raise describe(error, folder) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def load_knowledge(
    folder: Path, build_segmenter: Callable[[], BasicUNet], build_generator: Callable[[], Generator] | None
) -> Knowledge:
    """Read what :meth:`Knowledge.save` wrote; no code of the files is executed.

    Args:
        folder: the knowledge folder.
        build_segmenter: an untrained network of the same settings.
        build_generator: an untrained generator without domains; None for methods without one.

    Raises:
        CheckpointError: a file is missing, truncated or belongs to other settings.
    """
    if not (folder / "knowledge.json").is_file():
        raise CheckpointError(folder, "holds no knowledge of a finished stage", "give the folder of a finished run")
    try:
        facts = _Facts.model_validate(read_json(folder / "knowledge.json"))
    except (ValueError, RunFolderError):
        raise CheckpointError(folder / "knowledge.json", "is damaged", "copy the whole folder again") from None
    domains = facts.domains
    generator = build_generator() if facts.generator and build_generator is not None else None
    if generator is not None:
        for domain in domains:
            generator.add_domain(domain)
        load_weights(folder / "generator.safetensors", generator)
    statistics: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read_weights(folder / "statistics.safetensors").items():
        domain, _, name = key.rpartition("/")
        statistics.setdefault(domain, {})[name] = tensor
    return Knowledge(
        segmenter=load_weights(folder / "segmenter.safetensors", build_segmenter()),
        teacher=load_weights(folder / "teacher.safetensors", build_segmenter()),
        generator=generator,
        domains=domains,
        statistics=statistics,
    )


class _Facts(Config):
    """The contents of ``knowledge.json``."""

    domains: tuple[str, ...]
    generator: bool


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; errors as in :func:`garda.files.replacing`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))


def _read_weights(path: Path) -> dict[str, Tensor]:
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
        network.load_state_dict(_read_weights(path))
    except RuntimeError:
        raise CheckpointError(
            path, "holds weights of another network", "use the settings it was trained with"
        ) from None
    return network.eval()
