"""All that outlives a domain's images, and how it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from garda.core import files
from garda.core.errors import CheckpointError
from garda.data.task import Groups
from garda.methods import metadata
from garda.methods.metadata import EXPERTS, Metadata
from garda.models.generator import Generator
from garda.training import weights

DOMAIN_STATE_LIMIT = 64 * 1024  # bytes a domain
DOMAIN_STATE_SHARE = 0.02  # of the segmenter's bytes, where that is more


@dataclass(frozen=True)
class Knowledge:
    """What is kept when a domain's images are gone. Whatever is not in here is gone too.

    Attributes:
        segmenter: the network as of the last stage.
        source_segmenter: the segmenter as the source left it; its encoder also serves as a frozen feature encoder.
        generator: draws the domains met, or the source alone; None for methods without replay.
        domains: names of the domains met, in order; the first is the source.
        domain_state: what a method keeps of a domain, by domain and name; at most :func:`domain_state_limit` bytes
            a domain.
        experts: further networks that have learnt the source, by name: some of ``EXPERTS``.
        largest: of which classes the largest piece alone is kept of every answer, see :mod:`garda.data.components`.
    """

    segmenter: BasicUNet
    source_segmenter: BasicUNet
    generator: Generator | None
    domains: tuple[str, ...]
    domain_state: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    experts: Mapping[str, BasicUNet] = field(default_factory=dict)
    largest: Groups = ()

    def __post_init__(self) -> None:
        """Refuse a domain state above the limit.

        Raises:
            ValueError: names the domain and its bytes.
        """
        limit = domain_state_limit(self.segmenter)
        for domain, named in self.domain_state.items():
            size = sum(tensor.nbytes for tensor in named.values())
            if size > limit:
                raise ValueError(f"the state of domain {domain} takes {size} bytes, more than {limit}")

    def with_domain(self, domain: str, state: Mapping[str, Tensor] | None = None, **changes: Any) -> Knowledge:
        """A copy with one more domain met, its state where it has one, and further fields changed."""
        states = self.domain_state if state is None else {**self.domain_state, domain: state}
        return replace(self, domains=(*self.domains, domain), domain_state=states, **changes)

    def save(self, folder: Path, beside: Mapping[str, Any] | None = None) -> None:
        """Write everything into ``folder``, which appears whole or not at all.

        Args:
            folder: takes the place of what it may hold already.
            beside: further JSON files that appear with it, contents by name.

        Raises:
            RunFolderError: no space left, or the folder cannot be written.
        """
        with files.replacing_folder(folder) as draft:
            weights.save_weights(draft / "segmenter.safetensors", self.segmenter.state_dict())
            weights.save_weights(draft / "teacher.safetensors", self.source_segmenter.state_dict())
            for name, expert in self.experts.items():
                weights.save_weights(draft / f"{name}.safetensors", expert.state_dict())
            if self.generator is not None:
                weights.save_weights(draft / "generator.safetensors", self.generator.kept_state())
            flat = {f"{domain}/{name}": t for domain, named in self.domain_state.items() for name, t in named.items()}
            weights.save_weights(draft / "statistics.safetensors", flat)
            draws = None if self.generator is None else self.generator.domains
            described = Metadata(domains=self.domains, draws=draws, largest=self.largest)
            for name, contents in {"knowledge.json": described.model_dump(mode="json"), **(beside or {})}.items():
                files.write_json(draft / name, contents)


def domain_state_limit(segmenter: nn.Module) -> int:
    """Bytes that a domain may keep: 64 kB, or 2 % of the segmenter where that is more."""
    size = sum(tensor.nbytes for tensor in segmenter.state_dict().values())
    return max(DOMAIN_STATE_LIMIT, int(DOMAIN_STATE_SHARE * size))


def load_knowledge(
    folder: Path, build_segmenter: Callable[[], BasicUNet], build_generator: Callable[[], Generator | None]
) -> Knowledge:
    """Read what :meth:`Knowledge.save` wrote; no code of the files is executed.

    Args:
        folder: the knowledge folder.
        build_segmenter: an untrained network of the same settings.
        build_generator: an untrained generator without domains; None from a method without one.

    Raises:
        CheckpointError: a file is missing, truncated or belongs to other settings.
    """
    kept = metadata.read_metadata(folder)
    generator = None if kept.draws is None else build_generator()
    if generator is not None:
        for domain in kept.draws or ():
            generator.add_domain(domain)
        weights.load_weights(folder / "generator.safetensors", generator, {"trunk.": "decoder."})  # format 1
    domain_state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.read_weights(folder / "statistics.safetensors").items():
        domain, _, name = key.rpartition("/")
        domain_state.setdefault(domain, {})[name] = tensor
    segmenter = weights.load_weights(folder / "segmenter.safetensors", build_segmenter())
    source_segmenter = weights.load_weights(folder / "teacher.safetensors", build_segmenter())
    files_of = {name: folder / f"{name}.safetensors" for name in EXPERTS}
    experts = {name: weights.load_weights(file, build_segmenter()) for name, file in files_of.items() if file.exists()}
    try:
        return Knowledge(segmenter, source_segmenter, generator, kept.domains, domain_state, experts, kept.largest)
    except ValueError as error:
        raise CheckpointError(folder / "statistics.safetensors", str(error), "copy the file again") from None
