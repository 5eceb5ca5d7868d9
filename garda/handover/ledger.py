"""The ledger: a line for each stage, each with the SHA-256 of the one before.

A line says what was learnt, from how much, with what, what was kept and what was deleted. Its chain guards against
accident: who may write the file can write all of it anew. Against that stand signatures (:mod:`garda.handover.signing`)
and the comparison of a package's digest by another channel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from garda.core import files
from garda.core.config import Config
from garda.core.errors import PackageError
from garda.data.sequence import DomainName
from garda.evaluation.results import Result
from garda.safety.limits import SourceBaseline

LEDGER = "ledger.jsonl"
START = "0" * 64  # what the first line has in place of a line before it

Decision = Literal["source", "promote", "hold", "refuse", "ungated"]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")]  # it is printed


class FileRecord(Config):
    """One file, kept or deleted: its name, size in bytes and SHA-256."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class StageRecord(Config):
    """What a stage was and what became of it, as known when its images are let go.

    Attributes:
        stage: 0 for the source.
        domain: its name.
        month: such as ``2026-11``; no date of a package is finer.
        garda: version that learnt it.
        manifest: keyed digest of the manifest, see :meth:`garda.core.pseudonyms.Pseudonyms.digest`; the site alone can
            show which one it was.
        patients: number of training patients.
        scans: number of training scans.
        slices: number of training slices.
        deleted: files that were removed when the knowledge was kept.
        decision: of the gate; ``source`` for a source, which no gate judges, ``ungated`` where no gate was asked.
        reasons: one line for each check that did not pass.
        checks: every check of the gate as plain values.
        forced: whether the gate was overruled.
        reference: what the gate measured of the source, in the source's line alone.
        audit: figures of the privacy audit; None where none was made.
    """

    stage: int = Field(ge=0)
    domain: DomainName
    month: str = Field(pattern=r"^\d{4}-\d{2}$")
    garda: Word
    manifest: str
    patients: int = Field(ge=0)
    scans: int = Field(ge=0)
    slices: int = Field(ge=0)
    deleted: tuple[FileRecord, ...]
    decision: Decision
    reasons: tuple[str, ...] = ()
    checks: tuple[dict[str, Any], ...] = ()
    forced: bool = False
    reference: SourceBaseline | None = None
    audit: dict[str, Any] | None = None


class LedgerEntry(StageRecord):
    """A line of the ledger.

    Attributes:
        previous: SHA-256 of the line before, or zeros.
        method: the method's name.
        config: SHA-256 of all that ``setup.json`` says.
        seed: seed of everything random.
        seconds: how long each piece of training took.
        scores: of this stage, where the site had labels.
        kept: every file of the package but ledger and signatures.
    """

    previous: str = Field(pattern=r"^[0-9a-f]{64}$")
    method: Word
    config: str
    seed: int
    seconds: dict[str, float]
    scores: tuple[Result, ...]
    kept: tuple[FileRecord, ...]

    @property
    def learnt(self) -> bool:
        """Whether the package knows the stage's domain."""
        return self.decision != "refuse" or self.forced


def record(file: Path, name: str | None = None) -> FileRecord:
    """A file's record, under its own name or another."""
    contents = file.read_bytes()
    return FileRecord(name=name or file.name, bytes=len(contents), sha256=hashlib.sha256(contents).hexdigest())


def digest_of(values: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_lines(folder: Path) -> list[bytes]:
    """The ledger's lines as they stand in the file, without their ends; none where there is no ledger."""
    file = folder / LEDGER
    return file.read_bytes().removesuffix(b"\n").split(b"\n") if file.exists() else []


def line_digest(line: bytes) -> str:
    """What the next line says of a line."""
    return hashlib.sha256(line).hexdigest()


def parse_lines(folder: Path, lines: Sequence[bytes]) -> list[LedgerEntry]:
    """The entries, in order, once the chain has been found whole.

    Raises:
        PackageError: names the first line that does not fit.
    """
    entries: list[LedgerEntry] = []
    before = START
    for number, line in enumerate(lines, 1):
        where = f"{folder / LEDGER}, line {number}"
        try:
            entry = LedgerEntry.model_validate(json.loads(line))
        except (ValueError, ValidationError, RecursionError):
            raise PackageError(where, "is damaged", "ask for the package again") from None
        if encode(entry) != line:
            raise PackageError(where, "is not as garda writes it", "ask for the package again")
        if entry.previous != before:
            what = "is not the first" if number == 1 else f"does not follow: line {number - 1} has been changed"
            raise PackageError(where, what, "ask for the package again")
        if entry.stage != number - 1:
            raise PackageError(where, f"is of stage {entry.stage}", "ask for the package again")
        entries.append(entry)
        before = line_digest(line)
    return entries


def write_lines(folder: Path, lines: Iterable[bytes]) -> None:
    """Write the whole ledger; errors as in :func:`garda.core.files.replacing`."""
    with files.replacing(folder / LEDGER) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))


def encode(entry: LedgerEntry) -> bytes:
    """An entry as a line."""
    return json.dumps(entry.model_dump(mode="json"), sort_keys=True).encode()
