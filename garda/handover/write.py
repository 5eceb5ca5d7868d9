"""The last thing that a stage does: what was learnt becomes a package with one more line in its ledger."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garda.core import files
from garda.core.errors import PackageError
from garda.evaluation import results
from garda.evaluation.results import RESULTS, Result
from garda.handover import format, ledger, signing
from garda.handover.card import NOTICE_TEXT, write_card
from garda.handover.format import CARD, DIGEST, NOTICE, OPEN, SETUP
from garda.handover.ledger import START, LedgerEntry, StageRecord
from garda.handover.setup import Setup
from garda.methods import metadata


def write_package(
    folder: Path,
    previous: Path | None,
    setup: Setup,
    scores: Sequence[Result],
    seconds: Mapping[str, float],
    key: Ed25519PrivateKey | None = None,
) -> None:
    """Make a package of a stage's knowledge: weights, then the card, then the ledger's line over both.

    Killed at any moment, the same call again does what is missing. A sealed package is left as it is.

    Args:
        folder: holds knowledge, and under ``OPEN`` what :class:`garda.handover.ledger.StageRecord` says.
        previous: the package that the stage began with; None for a source.
        setup: what decides the learning.
        scores: of this stage.
        seconds: how long each piece of training took.
        key: signs the line.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
        PackageError: the previous package is damaged, or gone.
    """
    if not (folder / OPEN).exists():
        return
    record = StageRecord.model_validate(files.read_json(folder / OPEN))
    lines = [] if previous is None else ledger.read_lines(previous)
    if previous is not None and not lines:
        raise PackageError(previous, "has lost its ledger since it was opened", "run the same command again")
    before = [] if previous is None else ledger.parse_lines(previous, lines)
    entry = LedgerEntry(
        **dict(record),
        previous=ledger.line_digest(lines[-1]) if lines else START,
        method=setup.method,
        config=ledger.digest_of(setup.model_dump(mode="json")),
        seed=setup.seed,
        seconds=dict(seconds),
        scores=tuple(scores),
        kept=(),
    )
    files.write_json(folder / SETUP, setup.model_dump(mode="json"))
    _write(folder / RESULTS, results.format_results([result for known in (*before, entry) for result in known.scores]))
    _write(folder / NOTICE, NOTICE_TEXT)
    weighed = entry.model_copy(update={"kept": format.contents(folder)})
    card = write_card(
        setup, format.read_task(setup, folder), [*before, weighed], metadata.read_metadata(folder).domains
    )
    _write(folder / CARD, card)
    lines = [*lines, ledger.encode(entry.model_copy(update={"kept": format.contents(folder)}))]
    ledger.write_lines(folder, lines)
    _write(folder / DIGEST, f"{format.package_digest(folder)}\n")
    signatures = [] if previous is None else signing.read_signatures(previous)
    if key is not None:
        signatures = [*signatures, signing.sign_line(lines[-1], len(lines), key)]
    if signatures:
        signing.write_signatures(folder, signatures)
    (folder / OPEN).unlink()


def _write(path: Path, text: str) -> None:
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
