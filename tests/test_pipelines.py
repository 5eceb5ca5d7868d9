"""Every shipped YAML is read, agrees with its manifests, and says how it is run and what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from garda.methods import METHODS, parse_settings
from garda.methods.base import build_segmenter
from garda.run import check
from garda.sequence import find_gaps, read_sequence

ROOT = Path(__file__).parent.parent
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
@pytest.mark.parametrize("method", METHODS)
def test_every_pipeline_goes_with_every_config_and_method(file, config, method):
    sequence = read_sequence(file, config=config, method=method)
    assert find_gaps(sequence) == []
    settings = parse_settings(method, sequence.settings, sequence.config)
    assert settings.segmenter.widths[0] > 0


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_every_pipeline_opens_with_its_command_and_its_result(file):
    first, second = file.read_text().splitlines()[:2]
    assert first.startswith(f"# garda run pipelines/{file.name} --data ")
    assert second.startswith("# result: ") and "not measured" not in second


def test_the_small_recipe_writes_out_what_it_uses():
    sequence = read_sequence(ROOT / "pipelines" / "nuclei.yaml")
    segmenter = build_segmenter(sequence.task, parse_settings("garda_paper", sequence.settings, "x").segmenter)
    assert sum(parameter.numel() for parameter in segmenter.parameters()) < 1.5e6


def test_the_published_recipe_has_the_published_sizes():
    sequence = read_sequence(ROOT / "pipelines" / "phantom.yaml", config=ROOT / "configs" / "paper.yaml")
    settings = parse_settings("garda_paper", sequence.settings, sequence.config)
    paper = settings.garda_paper
    assert paper.replay.temperature == 2.0 and paper.style.content == 10.0 and paper.style.distillation == 1.0
    segmenter = build_segmenter(sequence.task, settings.segmenter)
    assert 31e6 < sum(parameter.numel() for parameter in segmenter.parameters()) < 35e6


@pytest.mark.parametrize("name", ["spinal_cord", "nuclei"])
def test_the_real_sequences_have_no_problem(name, real_data):
    from rich.console import Console

    from garda.report import Reporter

    sequence = read_sequence(ROOT / "pipelines" / f"{name}.yaml")
    cases = [case for domain in sequence.domains for case in domain.cases]
    check(sequence, real_data, cases, Reporter(Console(quiet=True)))
