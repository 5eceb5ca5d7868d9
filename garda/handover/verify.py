"""The first thing that the next site does: look whether a package is what its ledger says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from garda.errors import PackageError
from garda.handover.ledger import LEDGER, Entry, digest_of, parse_lines, read_lines
from garda.handover.package import KNOWN, OPTIONAL, SETUP, contents, package_digest, read_setup
from garda.handover.signing import Signature, check_signatures
from garda.knowledge import read_facts
from garda.plan import Setup

AGAIN = "ask for the package again"


@dataclass(frozen=True)
class Verified:
    """A package that is whole.

    Attributes:
        setup: what decides the learning.
        entries: the ledger's.
        signatures: valid ones, of trusted keys where keys were given.
        digest: see :func:`garda.handover.package.package_digest`.
    """

    setup: Setup
    entries: tuple[Entry, ...]
    signatures: tuple[Signature, ...]
    digest: str


def verify(folder: Path, trusted: Collection[str] = ()) -> Verified:
    """Recompute every digest of a package.

    Args:
        folder: the package.
        trusted: public keys as hex digits, see :func:`garda.handover.signing.check_signatures`.

    Raises:
        PackageError: names the first line, or file, that does not fit.
        CheckpointError: ``knowledge.json`` is damaged.
    """
    names = {path.name for path in folder.iterdir()}
    for strange in sorted(names - {*KNOWN}):
        raise PackageError(folder / strange, "is no part of a package", "remove it, or ask where it comes from")
    for missing in sorted({*KNOWN} - {*OPTIONAL} - names):
        raise PackageError(folder / missing, "is missing", AGAIN)
    lines = read_lines(folder)
    entries = parse_lines(folder, lines)
    if not entries:
        raise PackageError(folder / LEDGER, "holds no line", AGAIN)
    _check_files(folder, entries[-1], len(entries))
    setup = read_setup(folder)
    _check_setup(folder, setup, entries)
    signatures = check_signatures(folder, lines, trusted)
    return Verified(setup, tuple(entries), tuple(signatures), package_digest(folder))


def _check_files(folder: Path, entry: Entry, number: int) -> None:
    """The files are those of the last line, no more, no fewer, to the byte."""
    here = {known.name: known for known in contents(folder)}
    there = {known.name: known for known in entry.kept}
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            missing = "is missing" if name not in here else "has been changed"
            what = f"{missing}: it is not the file of ledger line {number}"
            raise PackageError(folder / name, what, AGAIN)


def _check_setup(folder: Path, setup: Setup, entries: list[Entry]) -> None:
    config = digest_of(setup.settings)
    for number, entry in enumerate(entries, 1):
        if (entry.config, entry.method, entry.seed) != (config, setup.method, setup.seed):
            what = f"was learnt with other settings than those of {SETUP}"
            raise PackageError(f"{folder / LEDGER}, line {number}", what, AGAIN)
    met = tuple(entry.domain for entry in entries if entry.learnt)
    if met != read_facts(folder).domains:
        what = f"says that {', '.join(met)} were met, knowledge.json says otherwise"
        raise PackageError(folder / LEDGER, what, AGAIN)
