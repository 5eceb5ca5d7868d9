"""How good a choice without labels was: every candidate's Dice, which the choice itself never saw.

For research: it keeps the candidates' weights in the run folder and reads the target's test labels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from garda.choice import Candidate, choose
from garda.errors import RunFolderError
from garda.files import read_json, replacing, write_json
from garda.weights import read_weights, save_weights

CANDIDATES = "candidates.csv"  # in a run folder


def keep_candidates(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Write candidates into ``folder``; errors as in :func:`garda.files.replacing`."""
    tensors = {f"{candidate.step}/{name}": value for candidate in candidates for name, value in candidate.own.items()}
    save_weights(folder / "candidates.safetensors", tensors)
    write_json(folder / "candidates.json", {str(candidate.step): dict(candidate.scores) for candidate in candidates})


def load_candidates(folder: Path) -> list[Candidate]:
    """Read what :func:`keep_candidates` wrote, in the order of their steps.

    Raises:
        CheckpointError: the weights are missing or damaged.
        RunFolderError: the scores are.
    """
    scores: Mapping[str, Mapping[str, float]] = read_json(folder / "candidates.json")
    own: dict[str, dict] = {step: {} for step in scores}
    for key, value in read_weights(folder / "candidates.safetensors").items():
        step, _, name = key.partition("/")
        own.setdefault(step, {})[name] = value
    if own.keys() != scores.keys():
        raise RunFolderError(folder, "candidates and their scores do not belong together", "give a new --out folder")
    return [Candidate(int(step), own[step], scores[step]) for step in sorted(scores, key=int)]


def judge(
    path: Path, stage: int, domain: str, candidates: Sequence[Candidate], dice: Callable[[Candidate], float]
) -> None:
    """Add a stage's candidates to the table of all; a row that stands there already is replaced.

    Args:
        path: ``CANDIDATES``, with the columns stage, domain, step, chosen, dice, and the label-free scores.
        stage: the stage.
        domain: its domain.
        candidates: those among which was chosen.
        dice: a candidate's mean Dice over the domain's test patients.
    """
    chosen = candidates[choose(candidates)].step
    rows = [row for row in read_candidates(path) if row["stage"] != str(stage)]
    for candidate in candidates:
        facts = {"stage": stage, "domain": domain, "step": candidate.step, "chosen": int(candidate.step == chosen)}
        rows.append({key: str(value) for key, value in {**facts, "dice": dice(candidate), **candidate.scores}.items()})
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def judged_stages(path: Path) -> set[int]:
    """The stages that stand in the table."""
    return {int(row["stage"]) for row in read_candidates(path)}


def read_candidates(path: Path) -> list[dict[str, str]]:
    """The rows of the table that :func:`judge` writes; none where there is no table."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
