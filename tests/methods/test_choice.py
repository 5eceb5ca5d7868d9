"""Which checkpoint of a target is chosen without a label, and how good that was."""

import math
from io import StringIO
from statistics import fmean

import pytest
import torch
from rich.console import Console as RichConsole
from torch import Tensor, nn

from garda.core.console import Console
from garda.core.errors import CheckpointError, RunFolderError
from garda.evaluation import metrics
from garda.models import choice
from garda.models.choice import Candidate
from garda.runs import choices
from tests.support import fakes, sites
from tests.support.errors import told
from tests.support.sites import SITES

COMPUTE = fakes.method("garda").compute


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
    assert "do not belong together" in told(RunFolderError, choices.load_candidates, tmp_path)
    (tmp_path / "candidates.safetensors").unlink()
    assert "no such file" in told(CheckpointError, choices.load_candidates, tmp_path)


def test_a_stage_stands_in_the_table_once(tmp_path):
    path, found = tmp_path / "candidates.csv", [candidate(1, a=1.0), candidate(2, a=0.5)]
    for dice in (0.3, 0.4):
        choices.judge(path, 1, "b", found, lambda tried, dice=dice: dice * tried.step)
    choices.judge(path, 2, "c", found[:1], lambda tried: math.nan)
    lines = ["stage,domain,step,chosen,dice,a", "1,b,1,1,0.4,1.0", "1,b,2,0,0.8,0.5", "2,c,1,1,nan,1.0"]
    assert path.read_text().splitlines() == lines
    _, second, third = choices.read_candidates(path)
    assert (second.stage, second.chosen, second.dice) == (1, False, 0.8)
    assert (third.stage, third.chosen, math.isnan(third.dice)) == (2, True, True), "no test scan shows the class"


def test_a_run_judges_its_choices_and_chooses_as_one_that_does_not(pipeline, finished, tmp_path):
    judged = sites.run_tiny(pipeline, tmp_path / "run", method="garda", judging=True)
    table = choices.read_candidates(tmp_path / "run" / "candidates.csv")
    assert [(line.stage, line.domain) for line in table] == [(stage, SITES[stage]) for stage in (1, 1, 1, 2, 2, 2)]
    for chosen in (line for line in table if line.chosen):
        rows = [row.dice for row in judged if (row.stage, row.domain) == (chosen.stage, chosen.domain)]
        assert chosen.dice == pytest.approx(fmean(rows))
    assert sum(line.chosen for line in table) == 2
    assert metrics.read_scores(finished / "scores.csv") == judged
    assert not list(finished.rglob("candidates*"))


def test_a_run_without_candidates_says_that_nothing_is_judged(pipeline, tmp_path):
    told = StringIO()
    with Console(RichConsole(file=told, width=200)) as console:
        sites.run_tiny(pipeline, tmp_path / "out", method="source_only", judging=True, console=console)
    assert "no choice is judged: no candidates were kept" in told.getvalue()
