"""How far the checkpoints that were chosen without labels fall short of the best ones of their stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from garda.comparison.rows import Row, run_folder
from garda.comparison.tables import Wide
from garda.judging import CANDIDATES, read_candidates

CHOICE_TITLE = "Dice of the checkpoint chosen without labels, and of the best one of its stage"


@dataclass(frozen=True)
class Chosen:
    """The choice of one stage.

    Attributes:
        row: name of the comparison's row.
        seed: of the run.
        domain: the stage's target.
        candidates: how many there were.
        step: steps that the chosen one had learnt.
        dice: its mean Dice over the target's test patients.
        best: the best candidate's.
        last: the last candidate's.
    """

    row: str
    seed: int
    domain: str
    candidates: int
    step: int
    dice: float
    best: float
    last: float

    @property
    def short(self) -> float:
        """What the choice costs; 0 for the best one."""
        return self.best - self.dice


def find_choices(out: Path, rows: Sequence[Row]) -> list[Chosen]:
    """Every choice that was judged in a comparison's folder, row by row, seed by seed, stage by stage."""
    found = []
    for row in rows:
        for seed in row.runs:
            lines = read_candidates(run_folder(out, row.method, row.label, seed) / CANDIDATES)
            for stage in sorted({int(line["stage"]) for line in lines}):
                own = [line for line in lines if line["stage"] == str(stage)]
                dice = [float(line["dice"]) for line in own]
                place = next(place for place, line in enumerate(own) if line["chosen"] == "1")
                step = int(own[place]["step"])
                what = (row.name, seed, own[0]["domain"], len(own), step, dice[place], max(dice), dice[-1])
                found.append(Chosen(*what))
    return found


def choice_table(choices: Sequence[Chosen]) -> Wide:
    """A line a choice; at the end of each row of the comparison, the mean and the worst of what its choices cost."""
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(choice.row for choice in choices):
        own = [choice for choice in choices if choice.row == name]
        lines += [_line(choice) for choice in own]
        short = [choice.short for choice in own]
        lines.append((name, "", "mean", "", "", "", "", "", f"{fmean(short):.3f}"))
        lines.append((name, "", "worst", "", "", "", "", "", f"{max(short):.3f}"))
    dice = ("Dice of the chosen", "of the best", "of the last", "short by")
    heading = ("row", "seed", "domain", "candidates", "steps of the chosen", *dice)
    return Wide(CHOICE_TITLE, None, heading, lines, words=3)


def _line(choice: Chosen) -> tuple[str, ...]:
    dice = (f"{value:.3f}" for value in (choice.dice, choice.best, choice.last, choice.short))
    return (choice.row, str(choice.seed), choice.domain, str(choice.candidates), str(choice.step), *dice)
