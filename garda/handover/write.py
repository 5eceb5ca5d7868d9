"""The last thing that a stage does: what was learnt becomes a package with one more line in its ledger."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garda.core import files
from garda.core.errors import PackageError
from garda.evaluation import results
from garda.evaluation.results import RESULTS, Result
from garda.handover import format, ledger, signing, verify
from garda.handover.card import NOTICE_TEXT, write_card
from garda.handover.format import CARD, DIGEST, KNOWLEDGE, NOTICE, OPEN, SETUP
from garda.handover.ledger import START, LedgerEntry, StageRecord
from garda.handover.setup import Setup
from garda.methods import metadata


def write_package(
    folder: Path,
    learnt: Path,
    previous: Path | None,
    setup: Setup,
    scores: Sequence[Result],
    seconds: Mapping[str, float],
    key: Ed25519PrivateKey | None = None,
) -> None:
    """Make a package of what a stage has learnt: knowledge, then the card, then the ledger's line over both.

    It is made in a folder of its own, found whole there and renamed, so that no command ever meets a part of it. Killed
    at any moment, the same call again ends with equal bytes. A package that is there is left as it is.

    Args:
        folder: where it appears.
        learnt: holds the knowledge, and under ``OPEN`` what :class:`garda.handover.ledger.StageRecord` says; removed
            when the package is there.
        previous: the package that the stage began with; None for a source.
        setup: what decides the learning.
        scores: of this stage.
        seconds: how long each piece of training took.
        key: signs the line.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
        PackageError: the previous package is damaged, or gone.
    """
    if not folder.exists():
        lines = [] if previous is None else ledger.read_lines(previous)
        if previous is not None and not lines:
            raise PackageError(previous, "has lost its ledger since it was opened", "run the same command again")
        before = [] if previous is None else ledger.parse_lines(previous, lines)
        entry = LedgerEntry(
            **dict(StageRecord.model_validate(files.read_json(learnt / OPEN))),
            previous=ledger.line_digest(lines[-1]) if lines else START,
            method=setup.method,
            config=ledger.digest_of(setup.model_dump(mode="json")),
            seed=setup.seed,
            seconds=dict(seconds),
            scores=tuple(scores),
            kept=(),
        )
        with files.replacing_folder(folder) as draft:
            for file in (learnt / name for name in KNOWLEDGE):
                if file.exists():
                    shutil.copyfile(file, draft / file.name)
            line = _describe(draft, setup, before, entry)
            ledger.write_lines(draft, [*lines, line])
            _write(draft / DIGEST, f"{format.package_digest(draft)}\n")
            signatures = [] if previous is None else signing.read_signatures(previous)
            if key is not None:
                signatures = [*signatures, signing.sign_line(line, len(lines) + 1, key)]
            if signatures:
                signing.write_signatures(draft, signatures)
            verify.verify(draft)
    files.remove_folder(learnt)


def _describe(draft: Path, setup: Setup, before: Sequence[LedgerEntry], entry: LedgerEntry) -> bytes:
    """Write settings, scores, notice and card beside the knowledge; gives the ledger's line over all of it."""
    files.write_json(draft / SETUP, setup.model_dump(mode="json"))
    _write(draft / RESULTS, results.format_results([result for known in (*before, entry) for result in known.scores]))
    _write(draft / NOTICE, NOTICE_TEXT)
    weighed = entry.model_copy(update={"kept": format.contents(draft)})
    domains = metadata.read_metadata(draft).domains
    _write(draft / CARD, write_card(setup, format.read_task(setup, draft), [*before, weighed], domains))
    return ledger.encode(entry.model_copy(update={"kept": format.contents(draft)}))


def _write(path: Path, text: str) -> None:
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
