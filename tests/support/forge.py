"""Packages changed by someone who may write every file and knows how garda seals."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from garda.core.errors import GardaError
from garda.handover import card, format, ledger
from garda.handover.ledger import LedgerEntry
from garda.handover.setup import Setup
from garda.methods import metadata


def seal_again(package: Path) -> None:
    """Make every digest fit again: settings, chain, files, card, the package's own."""
    setup = json.loads((package / "setup.json").read_text())
    lines = ledger.read_lines(package)
    for last in (False, True):  # the card says what is kept, and is kept itself
        for place, line in enumerate(lines):
            entry = json.loads(line)
            entry |= {"method": setup["method"], "seed": setup["seed"], "config": ledger.digest_of(setup)}
            entry["previous"] = ledger.line_digest(lines[place - 1]) if place else ledger.START
            if place == len(lines) - 1:
                entry["kept"] = [each.model_dump() for each in format.contents(package)]
            lines[place] = json.dumps(entry, sort_keys=True).encode()
        if not last:
            _write_card(package, setup, lines)
    (package / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (package / "digest.txt").write_text(f"{format.package_digest(package)}\n")


def _write_card(package: Path, setup: dict[str, Any], lines: list[bytes]) -> None:
    with suppress(ValueError, KeyError, TypeError, GardaError):  # what cannot be described has the old card
        entries = [LedgerEntry.model_validate_json(line) for line in lines]
        kept = tuple(file for file in entries[-1].kept if file.name != "card.md")
        described = [*entries[:-1], entries[-1].model_copy(update={"kept": kept})]
        known = Setup.model_validate(setup)
        text = card.write_card(
            known, format.read_task(known, package), described, metadata.read_metadata(package).domains
        )
        (package / "card.md").write_text(text, encoding="utf-8")


def change_weights(package: Path, name: str, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors of a file."""
    tensors = safetensors.numpy.load((package / name).read_bytes())
    change(tensors)
    (package / name).write_bytes(safetensors.numpy.save(tensors))


def change_settings(package: Path, changes: Mapping[str, Any]) -> None:
    """Change values of ``setup.json`` at dotted keys."""
    setup = json.loads((package / "setup.json").read_text())
    for key, value in changes.items():
        *outer, last = key.split(".")
        inner = setup
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
    (package / "setup.json").write_text(json.dumps(setup, indent=2, sort_keys=True) + "\n")
