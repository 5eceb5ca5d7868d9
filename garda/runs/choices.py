"""How good a choice without labels was: every candidate's Dice, which the choice itself never saw.

For research: it keeps the candidates' weights in the run folder and reads the target's test labels.
"""

import csv
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from garda.core import files
from garda.core.errors import RunFolderError
from garda.evaluation.measures import Row
from garda.evaluation.tables import Wide
from garda.models.reading import Candidate
from garda.runs import compare_plan
from garda.training import weights

CANDIDATES = "candidates.csv"  # in a run folder
_REMEDY = "delete it; garda run --judge-choice into this folder writes it again"


def keep_candidates(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Write candidates into ``folder``; errors as in :func:`garda.core.files.replacing`."""
    tensors = {f"{candidate.name}/{name}": value for candidate in candidates for name, value in candidate.own.items()}
    weights.save_weights(folder / "candidates.safetensors", tensors)
    scores = {candidate.name: {**candidate.scores, "chosen": candidate.chosen} for candidate in candidates}
    files.write_json(folder / "candidates.json", scores)


def load_candidates(folder: Path) -> list[Candidate]:
    """Read what :func:`keep_candidates` wrote, in its order.

    Raises:
        CheckpointError: the weights are missing or damaged.
        RunFolderError: the scores are.
    """
    scores: Mapping[str, Mapping[str, float]] = files.read_json(folder / "candidates.json")
    own: dict[str, dict] = {candidate: {} for candidate in scores}
    for key, value in weights.read_weights(folder / "candidates.safetensors").items():
        candidate, _, name = key.partition("/")
        own.setdefault(candidate, {})[name] = value
    if own.keys() != scores.keys():
        raise RunFolderError(folder, "candidates and their scores do not belong together", "give a new --out folder")
    return [
        Candidate(
            name,
            own[name],
            {key: float(value) for key, value in found.items() if key != "chosen"},
            found["chosen"] == 1,
        )
        for name, found in scores.items()
    ]


def _nan(value: float) -> float:
    if not math.isnan(value):
        raise ValueError(value)
    return value


class Judged(BaseModel):
    """A line of ``CANDIDATES``; columns beside these are the candidate's label-free scores.

    Attributes:
        stage: of the run.
        domain: its target.
        candidate: its name.
        chosen: whether it is the one that was chosen.
        dice: its mean Dice over the target's test patients; NaN where none of them has the class.
    """

    model_config = ConfigDict(extra="allow")

    stage: NonNegativeInt
    domain: str
    candidate: str
    chosen: bool
    dice: Annotated[float, Field(ge=0, le=1.001)] | Annotated[float, AfterValidator(_nan)]


def judge(
    path: Path, stage: int, domain: str, candidates: Sequence[Candidate], dice: Callable[[Candidate], float]
) -> None:
    """Add a stage's candidates to the table of all; a line that stands there already is replaced.

    Args:
        path: ``CANDIDATES``, a :class:`Judged` a line.
        stage: the stage.
        domain: its domain.
        candidates: those among which was chosen.
        dice: a candidate's mean Dice over the domain's test patients.

    Raises:
        RunFolderError: the table is damaged, or cannot be written.
    """
    lines = [line.model_dump() for line in read_candidates(path) if line.stage != stage]
    for candidate in candidates:
        known = {"stage": stage, "domain": domain, "candidate": candidate.name, "chosen": candidate.chosen}
        lines.append({**known, "dice": dice(candidate), **candidate.scores})
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**line, "chosen": int(line["chosen"])} for line in lines)


def read_candidates(path: Path) -> list[Judged]:
    """The table that :func:`judge` writes, of each stage one chosen line; none where there is no table.

    Raises:
        RunFolderError: it is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = [Judged.model_validate(line) for line in csv.DictReader(file, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error, ValidationError):
        raise RunFolderError(path, "is damaged", _REMEDY) from None
    chosen = Counter(line.stage for line in lines if line.chosen)
    if any(chosen[line.stage] != 1 for line in lines):
        raise RunFolderError(path, "expected one chosen candidate a stage", _REMEDY)
    return lines


CHOICE_TITLE = "Dice of the reading chosen without labels, and of the best one of its stage"
COST_TITLE = "Dice by which choices without labels fall short of the best"


@dataclass(frozen=True)
class Chosen:
    """The choice of one stage.

    Attributes:
        row: name of the comparison's row.
        seed: of the run.
        chosen: the candidate that was chosen.
        candidates: how many there were.
        best: the best candidate's Dice.
    """

    row: str
    seed: int
    chosen: Judged
    candidates: int
    best: float

    @property
    def short(self) -> float:
        """What the choice costs in Dice; 0 for the best one."""
        return self.best - self.chosen.dice


def find_choices(out: Path, rows: Sequence[Row]) -> list[Chosen]:
    """Every choice that was judged in a comparison's folder, row by row, seed by seed, stage by stage.

    Stages whose domain shows no Dice, for want of the class, are left out.

    Raises:
        RunFolderError: a run's table of candidates is damaged.
    """
    found = []
    for row, seed in [(each, seed) for each in rows for seed in each.runs]:
        judged = read_candidates(compare_plan.run_folder(out, row.method, row.label, seed) / CANDIDATES)
        for stage in sorted({line.stage for line in judged}):
            lines = [line for line in judged if line.stage == stage]
            dice = [line.dice for line in lines]
            if not any(map(math.isnan, dice)):
                (chosen,) = (line for line in lines if line.chosen)
                found.append(Chosen(row.name, seed, chosen, len(lines), max(dice)))
    return found


def choice_table(choices: Sequence[Chosen]) -> Wide:
    """A line a choice."""
    dice = ("Dice of the chosen", "of the best", "short by")
    heading = ("row", "seed", "domain", "candidates", "chosen", *dice)
    lines: list[tuple[str, ...]] = []
    for choice in choices:
        numbers = (f"{value:.3f}" for value in (choice.chosen.dice, choice.best, choice.short))
        words = (choice.row, choice.seed, choice.chosen.domain, choice.candidates, choice.chosen.candidate)
        lines.append((*map(str, words), *numbers))
    return Wide(CHOICE_TITLE, None, heading, lines, words=3)


def cost_table(choices: Sequence[Chosen]) -> Wide:
    """A line a row of the comparison: by how much its choices fall short, on average and at worst."""
    lines: list[tuple[str, ...]] = []
    for row, of_row in itertools.groupby(choices, attrgetter("row")):
        short = [choice.short for choice in of_row]
        lines.append((row, str(len(short)), f"{fmean(short):.3f}", f"{max(short):.3f}"))
    return Wide(COST_TITLE, None, ("row", "choices", "on average", "at worst"), lines, words=1)
