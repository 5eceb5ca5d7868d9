"""The ledger: a line for each stage, each with the SHA-256 of the one before.

A line says what was learnt, from how much, with what, what was kept and what was deleted. Its chain guards against
accident: who may write the file can write all of it anew. Against that stand signatures (:mod:`garda.handover.signing`)
and the comparison of a package's digest by another channel.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from garda.core import files
from garda.core.config import Config
from garda.core.errors import PackageError
from garda.data.sequence import DomainName
from garda.evaluation.results import Result
from garda.safety.limits import SourceBaseline

LEDGER = "ledger.jsonl"
AGAIN = "ask for the package again"
START = "0" * 64  # what the first line has in place of a line before it

Decision = Literal["source", "promote", "hold", "refuse", "ungated"]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")]  # it is printed
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # a SHA-256, or a public key
Line = TypeVar("Line", bound=Config)


class FileRecord(Config):
    """One file, kept or deleted: its name, size in bytes and SHA-256 as 64 hex digits."""

    name: str
    bytes: int = Field(ge=0)
    sha256: Hex64


class StageRecord(Config):
    """What a stage was and what became of it, as known when its images are let go.

    Attributes:
        stage: 0 for the source, then 1, 2 and so on for the targets.
        domain: the domain's name.
        month: in which it was learnt, such as ``2026-11``; no date of a package is finer.
        garda: version of garda that learnt it.
        manifest: keyed digest of the manifest, see :meth:`garda.core.pseudonyms.Pseudonyms.digest`; the site alone can
            show which one it was.
        patients: number of training patients.
        scans: number of training scans.
        slices: number of training slices.
        deleted: files that were removed when the knowledge was kept.
        decision: of the gate; ``source`` for a source, which no gate judges, ``ungated`` where no gate was asked.
        reasons: one line for each check that did not pass.
        checks: every check of the gate as plain values, see :class:`garda.safety.limits.Check`.
        forced: whether the gate was overruled.
        reference: what the gate measured of the source, in the source's line alone.
        audit: figures of the privacy audit; None where none was made.
        found: what each phase of training noted, by the phase's name: steps, numbers, and what was chosen by them.
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
    found: dict[str, dict[str, float | str]] = Field(default_factory=dict, exclude_if=lambda found: not found)


class LedgerEntry(StageRecord):
    """A line of the ledger.

    Attributes:
        previous: SHA-256 of the line before, or zeros.
        method: the method's name.
        config: SHA-256 of all that ``setup.json`` says.
        seed: seed of everything random.
        seconds: how long each phase of training took, by the phase's name.
        scores: of this stage, where the site had labels.
        kept: every file of the package but ledger and signatures.
    """

    previous: Hex64
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

    @property
    def overruled(self) -> str:
        """What texts append to the decision where the gate was overruled."""
        return ", overruled by a person" if self.forced else ""


def record(file: Path, name: str | None = None) -> FileRecord:
    """A file's record, under its own name or another.

    Raises:
        OSError: it cannot be read.
    """
    contents = file.read_bytes()
    return FileRecord(name=name or file.name, bytes=len(contents), sha256=hashlib.sha256(contents).hexdigest())


def digest_of(values: Any) -> str:
    """SHA-256 of plain values, 64 hex digits, whatever the order of their keys.

    Raises:
        TypeError: they hold what JSON cannot.

    >>> digest_of({"seed": 0, "method": "garda"}) == digest_of({"method": "garda", "seed": 0})
    True
    >>> digest_of([1, 2])[:16]
    '3a316d6d3226f84c'
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_lines(folder: Path) -> list[bytes]:
    """The ledger's lines as they stand in the file, without their ends; none where there is no ledger.

    Raises:
        OSError: it cannot be read.
    """
    file = folder / LEDGER
    return file.read_bytes().removesuffix(b"\n").split(b"\n") if file.exists() else []


def line_digest(line: bytes) -> str:
    """What the next line says of a line: its SHA-256, 64 hex digits.

    >>> line_digest(b"")[:16]
    'e3b0c44298fc1c14'
    """
    return hashlib.sha256(line).hexdigest()


def parse_lines(folder: Path, lines: Sequence[bytes]) -> list[LedgerEntry]:
    """The entries, in order, once the chain has been found whole.

    Args:
        folder: the package, for messages.
        lines: as of :func:`read_lines`.

    Raises:
        PackageError: names the first line that does not fit.
    """
    entries: list[LedgerEntry] = []
    for number, line in enumerate(lines, 1):
        where = f"{folder / LEDGER}, line {number}"
        entry = decode(LedgerEntry, line, where)
        before = line_digest(lines[number - 2]) if number > 1 else START
        what = ""
        if encode(entry) != line:
            what = "is not as garda writes it"
        elif entry.previous != before:
            what = "is not the first" if number == 1 else f"does not follow: line {number - 1} has been changed"
        elif entry.stage != number - 1:
            what = f"is of stage {entry.stage}"
        if what:
            raise PackageError(where, what, AGAIN)
        entries.append(entry)
    return entries


def write_lines(folder: Path, lines: Iterable[bytes], name: str = LEDGER) -> None:
    """Write the whole ledger, or another file of lines.

    Raises:
        RunFolderError: no space is left, or the folder cannot be written.
    """
    with files.replacing(folder / name) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))


def encode(entry: Config) -> bytes:
    """An entry as a line: JSON with sorted keys.

    >>> encode(FileRecord(name="card.md", bytes=0, sha256="0" * 64))[:31]
    b'{"bytes": 0, "name": "card.md",'
    """
    return json.dumps(entry.model_dump(mode="json"), sort_keys=True).encode()


def decode(model: type[Line], line: bytes, where: object) -> Line:
    """What a line holds; ``where`` it stands is for the message.

    Raises:
        PackageError: it is no JSON, or does not fit the model.

    >>> decode(FileRecord, b'{"name": "card.md"}', "ledger.jsonl, line 3")
    Traceback (most recent call last):
    garda.core.errors.PackageError: ledger.jsonl, line 3: is damaged; ask for the package again
    """
    try:
        return model.model_validate(json.loads(line))
    except (ValueError, RecursionError):
        raise PackageError(where, "is damaged", AGAIN) from None
