"""The first thing that the next site does: look whether a package is what its ledger says."""

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError

from garda import __version__
from garda.core.errors import ConfigError, PackageError
from garda.evaluation import results
from garda.evaluation.results import RESULTS
from garda.handover import card, format, ledger, signing, trust
from garda.handover.card import NOTICE_TEXT
from garda.handover.format import CARD, DIGEST, KNOWLEDGE, KNOWN, NOTICE, OPTIONAL, SETUP
from garda.handover.ledger import AGAIN, LEDGER, LedgerEntry
from garda.handover.setup import FORMAT, Setup
from garda.handover.signing import Signature, Trusted
from garda.methods import metadata

TEACHER, STATES = "teacher.safetensors", "statistics.safetensors"


@dataclass(frozen=True)
class Verified:
    """A package that is whole.

    Attributes:
        folder: where it lies, or is unzipped.
        setup: what decides the learning.
        entries: the ledger's.
        signatures: valid ones, of trusted keys where keys were given.
        digest: see :func:`garda.handover.format.package_digest`.
    """

    folder: Path
    setup: Setup
    entries: tuple[LedgerEntry, ...]
    signatures: tuple[Signature, ...]
    digest: str


@contextmanager
def open_package(
    path: Path, trusted: Collection[Trusted] = (), expected: str = "", stage: int | None = None
) -> Iterator[Verified]:
    """A package that is given as a folder, a zip file or a run, and found whole.

    Args:
        path: a folder, a zip file, or a run folder for its last stage.
        trusted: as in :func:`verify`.
        expected: as in :func:`verify`.
        stage: of a run, in place of its last one.

    Raises:
        PackageError: there is no package, or it is not whole.
        RunFolderError: the run has no such stage.
        ConfigError: ``expected`` is no whole digest, or the file of trusted keys is damaged.
    """
    with format.opened(path, stage) as folder:
        yield verify(folder, trusted, expected, trust.read())


def verify(
    folder: Path, trusted: Collection[Trusted] = (), expected: str = "", remembered: Collection[Trusted] = ()
) -> Verified:
    """Recompute every digest of a package.

    Args:
        folder: the package.
        trusted: whose signatures count, see :func:`garda.handover.signing.check_signatures`.
        expected: the digest that another channel has told; empty for not asking.
        remembered: see :func:`garda.handover.signing.check_remembered`.

    Raises:
        ConfigError: ``expected`` is no whole digest.
        PackageError: names the first line, or file, that does not fit.
        CheckpointError: ``knowledge.json`` is damaged.
    """
    if expected and not re.fullmatch("[0-9A-Fa-f]{64}", expected):
        raise ConfigError("--expect", f"{expected!r} is no whole digest", "give all 64 digits")
    format.check_names(folder)
    names = {path.name for path in folder.iterdir()}
    for missing in sorted({*KNOWN} - {*OPTIONAL} - names):
        raise PackageError(folder / missing, "is missing", AGAIN)
    lines = ledger.read_lines(folder)
    entries = ledger.parse_lines(folder, lines)
    if not entries:
        raise PackageError(folder / LEDGER, "holds no line", AGAIN)
    _check_files(folder, entries[-1], len(entries))
    setup = format.read_setup(folder)
    _check_setup(folder, setup, entries)
    _check_course(folder, entries)
    _check_states(folder, setup, entries)
    _check_texts(folder, setup, entries)
    digest = format.package_digest(folder)
    if (folder / DIGEST).read_text(encoding="utf-8", errors="replace") != f"{digest}\n":
        raise PackageError(folder / DIGEST, f"does not fit {LEDGER} and the other files", AGAIN)
    if b"".join(line + b"\n" for line in lines) != (folder / LEDGER).read_bytes():
        raise PackageError(folder / LEDGER, "does not end as garda ends it", AGAIN)
    if expected and expected.lower() != digest:
        raise PackageError(folder, f"has the digest {digest}, not the expected one", "ask which package it is")
    domains = [entry.domain for entry in entries]
    signatures = signing.check_signatures(folder, lines, domains, trusted)
    signing.check_remembered(folder, domains, signatures, remembered)
    return Verified(folder, setup, tuple(entries), tuple(signatures), digest)


def _check_files(folder: Path, entry: LedgerEntry, number: int) -> None:
    """The files are those of the last line, no more, no fewer, to the byte."""
    here = {known.name: known for known in format.contents(folder)}
    there = {known.name: known for known in entry.kept}
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            missing = "is missing" if name not in here else "has been changed"
            what = f"{missing}: it is not the file of ledger line {number}"
            raise PackageError(folder / name, what, AGAIN)


def _check_setup(folder: Path, setup: Setup, entries: list[LedgerEntry]) -> None:
    config = ledger.digest_of(setup.model_dump(mode="json"))
    for number, entry in enumerate(entries, 1):
        if (entry.config, entry.method, entry.seed) != (config, setup.method, setup.seed):
            what = f"was learnt with other settings than those of {SETUP}"
            raise PackageError(f"{folder / LEDGER}, line {number}", what, AGAIN)
    met = tuple(entry.domain for entry in entries if entry.learnt)
    if met != metadata.read_metadata(folder).domains:
        what = f"says that {', '.join(met)} were met, knowledge.json says otherwise"
        raise PackageError(folder / LEDGER, what, AGAIN)


def _check_course(folder: Path, entries: Sequence[LedgerEntry]) -> None:
    """What may not change from line to line, and what the gate needs to know."""
    for number, entry in enumerate(entries, 1):
        where = f"{folder / LEDGER}, line {number}"
        if (entry.reference is None) == (number == 1) or (entry.decision == "source") != (number == 1):
            raise PackageError(
                where, "a source stands first, with what the gate measured of it, and nowhere else", AGAIN
            )
        now, before = (_knowledge(known) for known in (entry, entries[max(number - 2, 0)]))
        if now.get(TEACHER) != before.get(TEACHER):
            raise PackageError(where, f"has another {TEACHER} than the line before", AGAIN)
        if not entry.learnt and now != before:
            raise PackageError(where, "was refused, and yet its knowledge is not that of the line before", AGAIN)


def _check_states(folder: Path, setup: Setup, entries: Sequence[LedgerEntry]) -> None:
    """What is kept of a domain is never changed: a line's digest is that of the states of the domains met so far."""
    if setup.format < FORMAT:
        return
    try:
        tensors = safetensors.numpy.load((folder / STATES).read_bytes())
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise PackageError(folder / STATES, "is damaged", AGAIN) from None
    met: list[str] = []
    for number, entry in enumerate(entries, 1):
        met += [entry.domain] if entry.learnt else []
        own = {name: tensor for name, tensor in tensors.items() if name.rpartition("/")[0] in met}
        digest = hashlib.sha256(safetensors.numpy.save(own)).hexdigest()
        if digest != _knowledge(entry).get(STATES):
            raise PackageError(
                folder / STATES, f"does not hold what ledger line {number} kept of {', '.join(met)}", AGAIN
            )


def _knowledge(entry: LedgerEntry) -> dict[str, str]:
    return {file.name: file.sha256 for file in entry.kept if file.name in KNOWLEDGE}


def _check_texts(folder: Path, setup: Setup, entries: Sequence[LedgerEntry]) -> None:
    """Scores and card say what the ledger says; the card of an older format may have other words."""
    texts = {
        RESULTS: results.format_results(result for entry in entries for result in entry.scores),
        NOTICE: NOTICE_TEXT,
    }
    if setup.format == FORMAT or entries[-1].garda == __version__:
        kept = tuple(file for file in entries[-1].kept if file.name != CARD)
        written = [*entries[:-1], entries[-1].model_copy(update={"kept": kept})]
        texts[CARD] = card.write_card(
            setup, format.read_task(setup, folder), written, metadata.read_metadata(folder).domains
        )
    for name, text in texts.items():
        if (folder / name).read_bytes() != text.encode():
            raise PackageError(folder / name, f"does not say what {LEDGER} says", AGAIN)
