from __future__ import annotations

import csv
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console as RichConsole
from torch import Tensor, nn

from garda.core.console import Console
from garda.core.errors import CheckpointError, RunFolderError
from garda.data import sequence
from garda.models import choice
from garda.models.choice import Candidate
from garda.runs import choices
from garda.runs.run import run_sequence
from garda.training.device import Compute, ComputeSettings
from tests.support import sites
from tests.support.sites import SITES

COMPUTE = Compute(ComputeSettings(accelerator="cpu", precision="32"))


class Threshold(nn.Module):
    """Two classes: brighter than half is foreground, the surer the larger ``slope``."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-(image - 0.5), image - 0.5], dim=1) * self.slope


def squares(share: float = 0.25) -> Tensor:
    """(4, 1, 16, 16) bright on dark."""
    image = torch.full((4, 1, 16, 16), 0.1)
    side = int(16 * math.sqrt(share))
    image[:, :, :side, :side] = 0.9
    return image


def scores(slope: float, real: Tensor, replayed: Tensor) -> dict[str, float]:
    torch.manual_seed(0)
    inside = (replayed > 0.5).float()
    return choice.score_candidate(Threshold(slope), real, replayed, torch.cat([1 - inside, inside], dim=1), COMPUTE)


def test_a_sure_and_right_network_scores_best_and_one_that_sees_nothing_worst():
    good, unsure, blind = (scores(slope, squares(), squares()) for slope in (50.0, 1.0, 0.0))
    assert good["replay"] > 0.99 > unsure["replay"] > blind["replay"]
    assert good["certainty"] > 0.99 and blind["certainty"] == pytest.approx(0, abs=1e-5)
    assert good["consistency"] > unsure["consistency"] > 0
    assert good["plausibility"] == pytest.approx(0, abs=1e-3)
    assert blind["plausibility"] < -0.5


def test_too_much_foreground_is_as_implausible_as_too_little():
    more, fewer = (scores(50.0, squares(share), squares(0.25))["plausibility"] for share in (0.5625, 0.0625))
    assert more < -0.5 and fewer < -0.5


def test_answers_in_tight_groups_are_denser_than_scattered_ones():
    groups = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).repeat(32, 1).T.reshape(1, 3, 8, 8)
    torch.manual_seed(0)
    scattered = torch.softmax(torch.randn(1, 3, 8, 8), dim=1)
    assert choice.neighbourhood_density(groups) == pytest.approx(math.log(31), abs=1e-3)
    assert choice.neighbourhood_density(scattered) < choice.neighbourhood_density(groups)
    assert choice.neighbourhood_density(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)) == 0


def candidate(step: int, **found: float) -> Candidate:
    return Candidate(step, {"conv.weight": torch.full((2,), float(step))}, found)


def test_the_best_mean_rank_is_chosen_and_of_equals_the_later_one():
    assert choice.choose([candidate(1, a=1, b=5), candidate(2, a=2, b=6), candidate(3, a=3, b=1)]) == 1
    assert choice.choose([candidate(1, a=1, b=2), candidate(2, a=2, b=1)]) == 1
    assert choice.choose([candidate(1, a=1)]) == 0


def test_candidates_come_back_in_order(tmp_path):
    choices.keep_candidates(tmp_path, [candidate(10, a=1.0), candidate(9, a=2.0)])
    first, second = choices.load_candidates(tmp_path)
    assert (first.step, second.step) == (9, 10) and first.scores == {"a": 2.0}
    assert torch.equal(second.own["conv.weight"], torch.full((2,), 10.0))
    (tmp_path / "candidates.json").write_text('{"9": {"a": 1.0}}')
    with pytest.raises(RunFolderError, match="do not belong together"):
        choices.load_candidates(tmp_path)
    (tmp_path / "candidates.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        choices.load_candidates(tmp_path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_stage_stands_in_the_table_once(tmp_path):
    path, found = tmp_path / "candidates.csv", [candidate(1, a=1.0), candidate(2, a=0.5)]
    for dice in (0.3, 0.4):
        choices.judge(path, 1, "b", found, lambda tried, dice=dice: dice * tried.step)
    choices.judge(path, 2, "c", found, lambda tried: 0.9)
    assert [(row["stage"], row["step"], row["chosen"], row["dice"]) for row in rows(path)] == [
        ("1", "1", "1", "0.4"),
        ("1", "2", "0", "0.8"),
        ("2", "1", "1", "0.9"),
        ("2", "2", "0", "0.9"),
    ]
    assert [(line.stage, line.chosen, line.dice) for line in choices.read_candidates(path)][1:3] == [
        (1, False, 0.8),
        (2, True, 0.9),
    ]


def test_a_class_that_no_test_scan_shows_leaves_a_table_that_can_be_read(tmp_path):
    choices.judge(tmp_path / "candidates.csv", 1, "b", [candidate(1, a=1.0)], lambda tried: math.nan)
    (line,) = choices.read_candidates(tmp_path / "candidates.csv")
    assert math.isnan(line.dice) and line.chosen


def test_a_run_judges_its_choices_and_chooses_as_one_that_does_not(tmp_path):
    pipeline = sites.write_tiny(tmp_path)
    judged = sites.run_tiny(pipeline, tmp_path / "judged", method="garda", judging=True)
    table = rows(tmp_path / "judged" / "candidates.csv")
    assert [row["domain"] for row in table] == [site for site in SITES[1:] for _ in range(3)]
    assert [row["chosen"] for row in table].count("1") == 2
    last = {row.domain: [] for row in judged}
    for row in judged:
        if row.stage == 2:
            last[row.domain].append(row.dice)
    for row in table:
        if row["chosen"] == "1":
            assert float(row["dice"]) == pytest.approx(sum(last[row["domain"]]) / len(last[row["domain"]]))
    assert sites.run_tiny(pipeline, tmp_path / "plain", method="garda") == judged
    assert not list((tmp_path / "plain").rglob("candidates*"))


def test_a_run_without_candidates_says_that_nothing_is_judged(tmp_path):
    pipeline, told = sites.write_tiny(tmp_path), StringIO()
    run = sites.tiny_run(sequence.read_sequence(pipeline, method="source_only"), pipeline, tmp_path / "out")
    run_sequence(replace(run, judging=True, console=Console(RichConsole(file=told, width=200))))
    assert "no choice is judged: no candidates were kept" in told.getvalue()
