"""The model card of a package, written from its ledger and nothing else."""

from collections.abc import Iterable, Sequence

from garda.data.task import Task
from garda.handover.ledger import LedgerEntry
from garda.handover.setup import Setup

NOTICE_TEXT = """# Notice

The weights in this package were learnt with garda (Apache-2.0) from scans of the sites that `card.md` names. garda's
licence covers garda, not the weights: who may use and pass on these is for the sites and their agreements to say.
Weights may hold traces of what they were learnt from; `card.md` says what was examined.
"""

MEANS = "Means over test patients, as each site measured them, on the scans' own grid; `n` is the number of patients."


def write_card(setup: Setup, task: Task, entries: Sequence[LedgerEntry], met: Sequence[str]) -> str:
    """The card as Markdown, after Mitchell et al., *Model Cards for Model Reporting* (FAT* 2019).

    The last three sections are those of a predetermined change control plan (FDA, *Marketing submission
    recommendations for a predetermined change control plan for artificial intelligence-enabled device software
    functions*, sections VI to VIII).

    Args:
        setup: what decides the learning.
        task: what is segmented.
        entries: the ledger's, at least one, the last being the stage that the package comes from.
        met: names of the domains that the package knows.
    """
    parts = (
        _head(setup, task, entries, met),
        _table("Sites", _sites(entries)),
        _scores(entries),
        *_choices(entries),
        _modification(entries[-1]),
        _protocol(setup, entries),
        _impact(entries),
        _limits(entries),
    )
    return "\n\n".join(parts) + "\n"


def _head(setup: Setup, task: Task, entries: Sequence[LedgerEntry], met: Sequence[str]) -> str:
    grid = f"{task.size[0]} x {task.size[1]} pixels"
    if task.spacing_mm is not None:
        grid += f" of {task.spacing_mm[0]:g} x {task.spacing_mm[1]:g} mm"
    return f"""# {setup.name}: {task.name}

A 2-D segmentation network for **{", ".join(task.classes[1:])}**, learnt from the labels of `{met[0]}` and taken to
other sites without their labels and without keeping an image.

- method: `{setup.method}`, garda {entries[-1].garda}, seed {setup.seed}
- input: {task.channels} channel{"s" * (task.channels > 1)}, {task.plane} slices, {grid}
- knows: {", ".join(f"`{name}`" for name in met)}
- stages: {len(entries)}, the last in {entries[-1].month}: **{entries[-1].decision}**{entries[-1].overruled}

Not a medical device. Predictions are to be checked by a person who can."""


def _sites(entries: Sequence[LedgerEntry]) -> Iterable[Sequence[object]]:
    yield "stage", "site", "month", "patients", "scans", "slices", "labels", "gate"
    for entry in entries:
        labels, decision = "read" if entry.stage == 0 else "never read", entry.decision + entry.overruled
        yield entry.stage, entry.domain, entry.month, entry.patients, entry.scans, entry.slices, labels, decision


def _scores(entries: Sequence[LedgerEntry]) -> str:
    rows: list[Sequence[object]] = [("after stage", "site", "class", "n", "Dice", "HD95")]
    for result in (result for entry in entries for result in entry.scores):
        dice = "-" if result.dice is None else f"{result.dice:.3f}"
        distance = "-" if result.hd95 is None else f"{result.hd95:.1f} {result.unit}"
        rows.append((result.stage, result.domain, result.name, result.patients, dice, distance))
    if len(rows) == 1:
        return "## Scores\n\nNone of the sites had labelled test scans at hand."
    return _table("Scores", rows, MEANS)


def _choices(entries: Sequence[LedgerEntry]) -> Iterable[str]:
    """How long was learnt and what was chosen, where a method says so."""
    rows = [
        (entry.stage, entry.domain, part, name, f"{value:g}" if isinstance(value, float) else value)
        for entry in entries
        for part, said in entry.found.items()
        for name, value in said.items()
    ]
    if rows:
        yield _table("Choices without a target's labels", [("stage", "site", "phase", "what", "found"), *rows])


def _modification(entry: LedgerEntry) -> str:
    learnt = "the segmentation network was learnt" if entry.stage == 0 else "the package was adapted"
    kept, gone = (sum(file.bytes for file in known) for known in (entry.kept, entry.deleted))
    return f"""## Change control: description of modifications

In stage {entry.stage}, {learnt} on {entry.scans} training scans of {entry.patients} patients of `{entry.domain}`.
{len(entry.kept)} files of {kept} bytes are kept; {len(entry.deleted)} files of {gone} bytes were deleted: checkpoints
of networks in training and of their optimizers. A record of deletion is a record, not a proof."""


def _protocol(setup: Setup, entries: Sequence[LedgerEntry]) -> str:
    return f"""## Change control: modification protocol

Every stage learns with the settings of `setup.json` (SHA-256 `{entries[-1].config}`)
and seed {setup.seed}; on one machine the same scans give the same weights. After a target's stage, checks without
labels decide whether its result is promoted, held for a person to look at, or refused; their limits come from the
source's data alone. The checks, and what they gave, stand in `ledger.jsonl`: a line a stage, with the digest of the
line before."""


def _impact(entries: Sequence[LedgerEntry]) -> str:
    found = [f"- stage {entry.stage}, `{entry.domain}`: {reason}" for entry in entries for reason in entry.reasons]
    found += [f"- stage {e.stage}, `{e.domain}`: no gate was asked" for e in entries if e.decision == "ungated"]
    return "\n".join(("## Change control: impact assessment", "", *(found or ["No check of any stage failed."])))


def _limits(entries: Sequence[LedgerEntry]) -> str:
    why = {entry.domain: entry.audit.get("no_figure") for entry in entries if entry.audit is not None}
    audited = [domain for domain, missing in why.items() if missing is None]
    audit = "Whether weights or generated images hold traces of single patients was not examined."
    if audited:
        audit = f"Copies and membership were examined for {', '.join(audited)}: see `audit` in `ledger.jsonl`."
    audit += "".join(f" No figure for {domain}: {missing}." for domain, missing in why.items() if missing is not None)
    return f"""## Limits

- The scores of a site are its own, measured on its own test patients; other sites may be read worse.
- {audit}
- The ledger's chain guards against accident. Who may write the files can write all of them anew: compare the package's
  digest by another channel, or ask for signatures (`garda verify --trust`)."""


def _table(title: str, rows: Iterable[Sequence[object]], note: str = "") -> str:
    head, *body = rows
    lines = (f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *body))
    return "\n".join((f"## {title}", "", *([note, ""] if note else []), *lines))
