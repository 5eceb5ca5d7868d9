"""The page for an auditor: what a package says of itself, all of it from its ledger, no image."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from rich.filesize import decimal

from garda import __version__
from garda.evaluation import page
from garda.evaluation.results import Result
from garda.evaluation.tables import NOTHING, Wide
from garda.handover import setup
from garda.handover.ledger import FileRecord, LedgerEntry
from garda.handover.signing import Trusted
from garda.handover.verify import Verified
from garda.safety import limits
from garda.safety.audit_report import Audit, AuditSettings
from garda.safety.limits import Check, GateSettings

COLOURS = {"promote": "#56b4e9", "hold": "#e69f00", "refuse": "#d00000"}
DARK, RED, BAR = "#222", "#d00000", "#56b4e9"


def make_page(found: Verified, trusted: Collection[Trusted] = (), expected: str = "") -> str:
    """The page of a package that has been found whole.

    Args:
        found: the package.
        trusted: the keys that were asked for.
        expected: the digest that was asked for.
    """
    try:
        settings = setup.in_todays_words(found.setup).settings
    except ValueError:
        settings = {}
    gate = GateSettings.model_validate(settings["gate"]) if "gate" in settings else None
    fewest = settings.get("audit", {}).get("fewest", AuditSettings().fewest)
    trust = "Whose keys these are was not asked: garda verify --trust SITE=KEY.pub asks it."
    if trusted:
        trust = "Every line bears a signature of a key that was asked for, and of no other."
    elif not found.signatures:
        trust = "Nobody has signed: who wrote these lines is not known."
    stages = [
        {
            "number": entry.stage,
            "domain": entry.domain,
            "month": entry.month,
            "garda": entry.garda,
            "decision": entry.decision + entry.overruled,
            "signers": [_grouped(own.key, 8) for own in found.signatures if own.line == entry.stage + 1],
            "reasons": entry.reasons,
            "checks": [*_checks(entry, gate)],
            "audit": None if entry.audit is None else _audit(entry.audit, fewest),
        }
        for entry in found.entries
    ]
    return page.render(
        "auditor.html",
        version=__version__,
        setup=found.setup,
        digest=_grouped(found.digest, 4).split(),
        expected=bool(expected),
        trust=trust,
        stages=stages,
        rows=_rows(found.entries),
        scores=_scores(found.entries),
    )


def _grouped(digits: str, length: int) -> str:
    return " ".join(digits[start : start + length] for start in range(0, len(digits), length))


def _files(files: Sequence[FileRecord]) -> str:
    return f"{len(files)} files, {decimal(sum(file.bytes for file in files))}"


def _rows(entries: Sequence[LedgerEntry]) -> Wide:
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        seen = f"{entry.patients} patients, {entry.scans} scans, {entry.slices} slices, "
        labels = "labels read" if entry.stage == 0 else "no label read"
        name = f"{entry.stage} {entry.domain}"
        rows.append((name, entry.decision + entry.overruled, seen + labels, _files(entry.kept), _files(entry.deleted)))
    title = "A row for each stage; what was deleted are networks in training, by the site's own word"
    return Wide(title, None, ("stage", "decision", "seen", "kept", "deleted"), rows, words=5)


def _checks(entry: LedgerEntry, gate: GateSettings | None) -> Iterator[dict[str, Any]]:
    """Every check with both of its limits; what was recognised before learning can be held, and not be refused."""
    first = True
    for plain in entry.checks:
        check = Check.model_validate(plain)
        hold, refuse = limits.both_limits(check, gate)
        if check.name == "recognition":
            refuse, first = (None if first else refuse), False
        ticks = [(hold, DARK), (refuse, RED)]
        yield {
            "name": check.name,
            "domain": check.domain,
            "value": _number(check.value),
            "hold": _number(hold),
            "refuse": _number(refuse),
            "decision": check.decision,
            "bar": _bar(f"{check.name} {_number(check.value)}", 0.0, check.value, ticks, COLOURS[check.decision]),
        }


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _bar(
    label: str,
    start: float,
    end: float | None,
    ticks: Sequence[tuple[float | None, str]],
    colour: str,
    top: float | None = None,
) -> dict[str, Any]:
    """A bar on a scale from 0 to ``top``, or to a little more than the largest number on it, of width 100."""
    known = [(at, shade) for at, shade in ticks if at is not None]
    top = top or 1.1 * max(1e-9, end or 0.0, *(at for at, _ in known))

    def place(value: float) -> float:
        return round(100 * min(max(value / top, 0.0), 0.992), 2)

    width = 0.0 if end is None else max(place(end) - place(start), 0.0)
    lines = [{"x": place(at), "colour": shade} for at, shade in known]
    return {"label": label, "start": place(start), "width": width, "ticks": lines, "colour": colour}


def _scores(entries: Sequence[LedgerEntry]) -> Wide:
    """Each stage's own site, by class, before its stage and after it."""
    found = {(each.stage, each.domain, each.name): each for entry in entries for each in entry.scores}
    rows = []
    for (stage, domain, name), after in found.items():
        if stage < len(entries) and entries[stage].domain == domain:
            before = found.get((stage - 1, domain, name))
            cells = [cell for pair in zip(_of(before), _of(after), strict=True) for cell in pair]
            rows.append((f"{stage} {domain}", name, str(after.patients), *cells))
    title = "Means over a site's own test patients, as the site measured them"
    heading = ("stage", "class", "n", "Dice before", "after", "HD95 before", "after")
    return Wide(title, None, heading, rows, words=2)


def _of(result: Result | None) -> tuple[str, str]:
    if result is None:
        return NOTHING, NOTHING
    dice = NOTHING if result.dice is None else f"{result.dice:.3f}"
    return dice, NOTHING if result.hd95 is None else f"{result.hd95:.1f} {result.unit}"


def _audit(plain: dict[str, Any], fewest: int) -> dict[str, Any]:
    """An audit's figures; one of another version of garda is told as such."""
    try:
        found = Audit.model_validate(plain)
    except ValidationError:
        return {"who": "", "none": "an audit of another version, see ledger.jsonl", "findings": (), "figures": []}
    few = min(found.members, found.outsiders)
    return {
        "who": f"{found.members} training patients, {found.outsiders} never used in training",
        "none": None if found.no_figure is None else f"no figure: {few} of {fewest} patients",
        "findings": found.findings,
        "figures": [*_figures(found)],
    }


def _figures(found: Audit) -> Iterator[dict[str, Any]]:
    for copies in found.copies:
        low, high = copies.interval
        text = f"{copies.share:.1%} ({low:.1%} to {high:.1%}), by chance up to {copies.chance:.1%}"
        top = max(0.1, 1.1 * high, 1.1 * copies.chance)
        yield _figure(f"copies, {copies.space}", text, (low, high), copies.share, copies.chance, top)
    for outliers in found.outliers:
        share = outliers.count / outliers.members
        text = f"{outliers.count} of {outliers.members} training patients stand out"
        yield _figure(f"outliers, {outliers.space}", text, (0.0, share), share, None, 1.0)
    for attack in found.membership:
        name = f"membership, {attack.attack}{', calibrated' if attack.calibrated else ''}"
        low, high = attack.interval
        yield _figure(name, f"AUC {attack.auc:.3f} ({low:.3f} to {high:.3f})", (low, high), attack.auc, 0.5, 1.0)


def _figure(
    name: str, text: str, interval: tuple[float, float], value: float, chance: float | None, top: float
) -> dict[str, Any]:
    return {"name": name, "text": text, "bar": _bar(text, *interval, [(value, DARK), (chance, RED)], BAR, top)}
