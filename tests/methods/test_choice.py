"""How good the reading of a target was that was chosen without a label."""

import math
from io import StringIO
from statistics import fmean

import pytest
import torch
from rich.console import Console as RichConsole

from garda.core.console import Console
from garda.core.errors import CheckpointError, RunFolderError
from garda.evaluation import metrics
from garda.models.reading import Candidate
from garda.runs import choices
from tests.support import sites
from tests.support.errors import told
from tests.support.sites import SITES


def candidate(name: str, chosen: bool = False, **found: float) -> Candidate:
    return Candidate(name, {"reading.zoom": torch.tensor(float(len(name)))}, found, chosen)


def test_candidates_come_back_in_order(tmp_path):
    choices.keep_candidates(tmp_path, [candidate("plain", True, a=1.0), candidate("plain, zoom 2", a=2.0)])
    first, second = choices.load_candidates(tmp_path)
    assert (first.name, first.chosen, second.name, second.chosen) == ("plain", True, "plain, zoom 2", False)
    assert first.scores == {"a": 1.0} and second.own == {"reading.zoom": torch.tensor(13.0)}
    (tmp_path / "candidates.json").write_text('{"plain": {"a": 1.0, "chosen": true}}')
    assert "do not belong together" in told(RunFolderError, choices.load_candidates, tmp_path)
    (tmp_path / "candidates.safetensors").unlink()
    assert "no such file" in told(CheckpointError, choices.load_candidates, tmp_path)


def test_a_stage_stands_in_the_table_once(tmp_path):
    path, found = tmp_path / "candidates.csv", [candidate("one", True, a=1.0), candidate("seven, x", a=0.5)]
    for dice in (0.05, 0.1):
        choices.judge(path, 1, "b", found, lambda tried, dice=dice: dice * len(tried.name))
    choices.judge(path, 2, "c", found[:1], lambda tried: math.nan)
    first, second, third = choices.read_candidates(path)
    assert (first.candidate, first.chosen, round(first.dice, 3)) == ("one", True, 0.3)
    assert (second.stage, second.candidate, second.chosen, second.dice) == (1, "seven, x", False, 0.8)
    assert (third.stage, third.chosen, math.isnan(third.dice)) == (2, True, True), "no test scan shows the class"


def test_a_run_judges_its_choices_and_chooses_as_one_that_does_not(pipeline, finished, tmp_path):
    judged = sites.run_tiny(pipeline, tmp_path / "run", method="garda", judging=True)
    table = choices.read_candidates(tmp_path / "run" / "candidates.csv")
    assert [(line.stage, line.domain) for line in table] == [
        (stage, SITES[stage]) for stage in (1, 2) for _ in range(5)
    ]  # experts, mean, lesson
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
