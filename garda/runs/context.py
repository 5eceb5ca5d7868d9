"""A run: what is asked for, who listens, and its folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from garda import __version__
from garda.core import files
from garda.core.console import Console
from garda.core.errors import RunFolderError
from garda.core.pseudonyms import Pseudonyms
from garda.core.seeds import derive_seed
from garda.core.signals import Stopping
from garda.data.sequence import Domain, DomainSequence
from garda.evaluation import metrics, results
from garda.evaluation.metrics import Score
from garda.handover import format, ledger
from garda.handover.ledger import FileRecord
from garda.handover.settings import Settings, parse_settings
from garda.runs.tracking import Tracker
from garda.training import distributed
from garda.training.cache import Cache
from garda.training.loop import Note, Phase

AGAIN = "delete it, it is computed again"


@dataclass(frozen=True)
class Run:
    """A sequence, or one hop of it, in one run folder.

    Attributes:
        sequence: what is learnt, in which order.
        data: the folder that manifest paths are relative to.
        out: the run folder.
        tracker: receives metrics and artifacts.
        console: tells the user.
        stopping: asked between and within stages.
        pseudonyms: stand for patients and cases in ``scores.csv``.
        cache: a folder where runs of one comparison share what they learn from the source; None for none.
        judging: keep the candidates of each target's stage and write what their hidden Dice was.
        key: signs each stage's line of the ledger; None for no signature.
        gated: whether the gate judges targets; what it measures of the source is kept in any case.
        forced: keep what the gate refuses; recorded in the ledger.
        audited: whether each stage's generator is audited, while the images are there.
    """

    sequence: DomainSequence
    data: Path
    out: Path
    tracker: Tracker
    console: Console
    stopping: Stopping
    pseudonyms: Pseudonyms
    cache: Path | None = None
    judging: bool = False
    key: Ed25519PrivateKey | None = None
    gated: bool = True
    forced: bool = False
    audited: bool = False

    @cached_property
    def settings(self) -> Settings:
        """The sequence's, checked and with their defaults."""
        return parse_settings(self.sequence.method, self.sequence.settings, self.sequence.origin)

    @property
    def scores_file(self) -> Path:
        """Every score of the run, a row each."""
        return self.out / "scores.csv"

    @property
    def notes_file(self) -> Path:
        """What each phase has found out, by its name."""
        return self.out / "notes.json"

    @property
    def seconds_file(self) -> Path:
        """How long each phase of training took, by its name."""
        return self.out / "seconds.json"

    def kept(self, domain: Domain) -> Path:
        """Where a stage's package is kept; it appears whole, and is never written again."""
        return format.stage_folder(self.out, domain.index, domain.name)

    def learnt(self, domain: Domain) -> Path:
        """What a stage has learnt, and will say of it, until its package is there."""
        return self.kept(domain).with_name("learnt")

    def found(self, domain: Domain) -> Path:
        """Where a stage's knowledge is: in its package, or in what has not been sealed yet."""
        return kept if (kept := self.kept(domain)).exists() else self.learnt(domain)

    def training(self, domain: Domain) -> Path:
        """Checkpoints of a stage in progress; deleted when its knowledge is kept."""
        return self.kept(domain).parent / "training"

    def to_learn(self) -> list[Domain]:
        """The domains whose stage is to be learnt; one that another site has learnt has no case here."""
        return [domain for domain in self.sequence.domains if domain.cases and not self.found(domain).exists()]


def stage_name(domain: Domain) -> str:
    """Such as ``1-SiteB``."""
    return f"{domain.index}-{domain.name}"


def read_run_scores(out: Path, names: Sequence[str]) -> list[Score]:
    """What a run folder says of its stages; nothing where it has scored none.

    Args:
        out: the run folder.
        names: of the run's domains, in order.

    Raises:
        RunFolderError: the file is damaged, or does not say what the ledger of a stage's package says.
    """
    file = out / "scores.csv"
    scores = metrics.read_scores(file) if file.exists() else []
    if any(row.stage >= len(names) for row in scores):
        raise RunFolderError(file, "holds stages of another run", AGAIN)
    for index, name in enumerate(names):
        package = format.stage_folder(out, index, name)
        found = {r.key: r for r in results.summarise([row for row in scores if row.stage == index])}
        if found and package.exists():
            sealed = ledger.parse_lines(package, ledger.read_lines(package))[-1:]
            for result in (result for entry in sealed for result in entry.scores):
                if found.get(result.key, result) != result:
                    what = f"says of {result.domain} after stage {index} other than the ledger of {package.parent.name}"
                    raise RunFolderError(file, what, AGAIN)
    return scores


def tell(run: Run, domain: Domain, line: str) -> None:
    """One line about a stage."""
    run.console.line(f"{stage_name(domain)}: {line}")


@contextmanager
def training_folder(run: Run, domain: Domain) -> Iterator[Path]:
    """Where a stage's checkpoints go, its owner's alone; other ranks have a temporary one for large slices."""
    if not distributed.is_rank_zero():
        with files.private_temporary_folder() as folder:
            yield folder
        return
    folder = run.training(domain)
    with files.writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    yield folder


def open_phase(run: Run, domain: Domain, folder: Path, part: str) -> Phase:
    """One phase of a stage's training; equal seeds and names give equal phases, whatever the method."""
    name = f"{stage_name(domain)}-{part}"
    return Phase(
        name=name,
        folder=folder / part,
        seed=derive_seed(run.sequence.seed, f"{stage_name(domain)}-{part}"),
        stopping=run.stopping,
        log=partial(run.tracker.losses, name),
        progress=run.console.bar(name),
        checkpoint_seconds=run.settings.checkpoint_seconds,
        before=float(_read_records(run.seconds_file).get(name, 0.0)),
        spent=partial(_note_seconds, run, name),
        note=partial(_note, run, name),
    )


def open_cache(run: Run) -> Cache:
    """Where a comparison's runs share what they learn from the source; nowhere, for a run of its own."""
    if run.cache is None or distributed.count() > 1:  # the other ranks must not wait for what need not be learnt
        return Cache()
    sequence = run.sequence
    context = {
        "garda": __version__,
        "task": sequence.task.model_dump(mode="json"),
        "source": [sequence.source.name, run.pseudonyms.digest("plan", sequence.digests[sequence.source.name])],
        "seed": sequence.seed,
        "compute": run.settings.compute.model_dump(mode="json"),
    }
    return Cache(run.cache, context)


def note_machine(run: Run, machine: Mapping[str, str]) -> None:
    """Record what decides last bits beside the plan; told where a run goes on under something else."""
    file = run.out / "machine.json"
    before = _read_records(file)
    changed = [f"{what} {now}, before {before[what]}" for what, now in machine.items() if before.get(what, now) != now]
    if changed:
        run.console.line(f"goes on under {'; '.join(changed)}: last bits may differ from those of a run in one go")
    files.write_json(file, dict(machine))


def _note_seconds(run: Run, name: str, seconds: float) -> None:
    _record(run.seconds_file, name, round(seconds, 3))


def _note(run: Run, name: str, found: Mapping[str, Note]) -> None:
    if found:
        _record(run.notes_file, name, {key: round(v, 4) if isinstance(v, float) else v for key, v in found.items()})


def _record(file: Path, name: str, found: Any) -> None:
    if distributed.is_rank_zero():
        files.write_json(file, _read_records(file) | {name: found})


def _read_records(file: Path) -> dict[str, Any]:
    return files.read_json(file) if file.exists() else {}


def seconds_of(run: Run, domain: Domain) -> dict[str, float]:
    """How long each phase of a stage took."""
    return _of_stage(run.seconds_file, domain)


def notes_of(run: Run, domain: Domain) -> dict[str, dict[str, Note]]:
    """What each phase of a stage has noted."""
    return _of_stage(run.notes_file, domain)


def _of_stage(file: Path, domain: Domain) -> dict[str, Any]:
    name = f"{stage_name(domain)}-"
    return {part.removeprefix(name): found for part, found in _read_records(file).items() if part.startswith(name)}


def deleted_records(folder: Path) -> tuple[FileRecord, ...]:
    """Records of everything that lies below a folder, but for what a killed process was about to write."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.match(files.TORN))
    return tuple(ledger.record(path, path.relative_to(folder).as_posix()) for path in found)
