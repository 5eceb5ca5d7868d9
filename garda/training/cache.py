"""The phases of a stage, and the cache in which runs share networks that equal settings make equal."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from garda.core import files
from garda.core.errors import CheckpointError
from garda.training import weights
from garda.training.loop import Note, Phase
from garda.training.weights import N


@dataclass(frozen=True)
class Cache:
    """A folder of finished networks of a source stage, by the digest of all that decides them.

    Only what has learnt from the source may lie here: no run keeps a target's networks for another.

    Attributes:
        folder: where they lie; None shares nothing.
        context: what decides every network of a run: version, task, seed, compute settings, manifest of the source.
    """

    folder: Path | None = None
    context: Mapping[str, Any] = field(default_factory=dict)

    def get_or_train(
        self, part: str, settings: Mapping[str, Any], phase: Phase, build: Callable[[], N], learn: Callable[[Phase], N]
    ) -> N:
        """The network of a part of the source stage: from the cache, or learnt and put there.

        Args:
            part: such as ``segmenter``.
            settings: what decides the network beside the context.
            phase: where it is learnt; told the seconds and what was noted, whichever run learnt it.
            build: an untrained network of the same architecture.
            learn: learns it.

        Returns:
            The network in evaluation mode, without gradients.

        Raises:
            CheckpointError: what lies there is damaged.
            RunFolderError: the folder cannot be written.
        """
        if self.folder is None:
            return learn(phase).eval().requires_grad_(False)
        decided = {"context": self.context, "part": part, "settings": settings}
        digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
        kept, metadata = (self.folder / f"{part}-{digest[:16]}.{kind}" for kind in ("safetensors", "json"))
        if metadata.exists():
            known = files.read_json(metadata)
            seconds, noted = known.get("seconds"), known.get("noted")
            if not isinstance(seconds, float) or not isinstance(noted, dict):
                raise CheckpointError(metadata, "is damaged", "delete it, the network is learnt again")
            phase.spent(seconds)
            phase.note(noted)
            return weights.load_weights(kept, build()).requires_grad_(False)
        spent, found = [0.0], dict[str, Note]()

        def note_seconds(seconds: float) -> None:
            spent.append(seconds)
            phase.spent(seconds)

        network = learn(replace(phase, spent=note_seconds, note=found.update)).eval().requires_grad_(False)
        phase.note(found)
        weights.save_weights(kept, network.state_dict())
        files.write_json(metadata, {"seconds": spent[-1], "noted": found, **decided})
        return network


@dataclass(frozen=True)
class Stage:
    """The phases of one domain's stage.

    Attributes:
        open: ``"segmenter"`` -> the phase of that name, seeded and with its own folder.
        cache: where runs share what they learn from the source.
        offer: receives the candidates among which a method has chosen, with their label-free scores.
    """

    open: Callable[[str], Phase]
    cache: Cache = field(default_factory=Cache)
    offer: Callable[[Sequence[Any]], None] = lambda candidates: None

    def __call__(self, part: str) -> Phase:
        """The phase of that name."""
        return self.open(part)


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's weights and buffers: what decides a network that learns from it.

    >>> network = nn.Linear(2, 2)
    >>> fingerprint(network) == fingerprint(network), fingerprint(network) == fingerprint(nn.Linear(2, 2))
    (True, False)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
