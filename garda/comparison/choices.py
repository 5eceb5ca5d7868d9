"""How far the checkpoints that were chosen without labels fall short of the best ones of their stages."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from garda.comparison.rows import Row, run_folder
from garda.comparison.tables import Wide
from garda.judging import CANDIDATES, Judged, read_candidates

CHOICE_TITLE = "Dice of the checkpoint chosen without labels, and of the best one of its stage"
COST_TITLE = "Dice by which choices without labels fall short of the best checkpoint"


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
    """Every choice that was judged in a comparison's folder, row by row, seed by seed, stage by stage.

    Stages whose domain shows no Dice, for want of the class, are left out.

    Raises:
        RunFolderError: a run's table of candidates is damaged.
    """
    found = []
    for row in rows:
        for seed in row.runs:
            stages: dict[int, list[Judged]] = defaultdict(list)
            for line in read_candidates(run_folder(out, row.method, row.label, seed) / CANDIDATES):
                stages[line.stage].append(line)
            for _, lines in sorted(stages.items()):
                if any(math.isnan(line.dice) for line in lines):
                    continue
                (chosen,) = (line for line in lines if line.chosen)
                best, last = max(line.dice for line in lines), lines[-1].dice
                found.append(Chosen(row.name, seed, chosen.domain, len(lines), chosen.step, chosen.dice, best, last))
    return found


def choice_table(choices: Sequence[Chosen]) -> Wide:
    """A line a choice."""
    dice = ("Dice of the chosen", "of the best", "of the last", "short by")
    heading = ("row", "seed", "domain", "candidates", "steps of the chosen", *dice)
    return Wide(CHOICE_TITLE, None, heading, [_line(choice) for choice in choices], words=3)


def cost_table(choices: Sequence[Chosen]) -> Wide:
    """A line a row of the comparison: by how much its choices fall short, on average and at worst."""
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(choice.row for choice in choices):
        short = [choice.short for choice in choices if choice.row == name]
        lines.append((name, str(len(short)), f"{fmean(short):.3f}", f"{max(short):.3f}"))
    return Wide(COST_TITLE, None, ("row", "choices", "on average", "at worst"), lines, words=1)


def _line(choice: Chosen) -> tuple[str, ...]:
    dice = (f"{value:.3f}" for value in (choice.dice, choice.best, choice.last, choice.short))
    return (choice.row, str(choice.seed), choice.domain, str(choice.candidates), str(choice.step), *dice)
