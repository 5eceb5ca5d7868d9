"""Every shipped YAML is read, agrees with its manifests, and says how it is run and what came out."""

from dataclasses import replace
from pathlib import Path

import pytest

from garda.core.errors import ConfigError
from garda.data import checks
from garda.data.sequence import DomainSequence, find_gaps, read_sequence
from garda.handover.settings import parse_settings
from garda.methods import registry
from garda.methods.base import Method
from garda.methods.registry import METHODS
from garda.models import unet

ROOT = Path(__file__).parent.parent
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


FOR_256 = {("paper", "garda_paper")}  # config and method that draw 256 x 256 pixels, which no shipped task has


def build(sequence: DomainSequence) -> Method:
    settings = parse_settings(sequence.method, sequence.settings, sequence.origin)
    return registry.build_method(sequence.method, settings, sequence.task)


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
@pytest.mark.parametrize("method", METHODS)
def test_every_pipeline_goes_with_every_config_and_method(file, config, method):
    sequence = read_sequence(file, config=config, method=method)
    assert find_gaps(sequence) == []
    learner = build(sequence)
    if (config.stem, method) in FOR_256:
        assert sequence.task.size != (256, 256)
        height, width = sequence.task.size
        with pytest.raises(ConfigError) as caught:
            learner.check()
        assert str(caught.value) == (
            f"generator.widths: 7 resolutions cannot draw {height} x {width} pixels; "
            "change the number of resolutions, or the task's size"
        )
    else:
        learner.check()


def test_the_published_recipe_fits_its_size():
    paper = ROOT / "configs" / "paper.yaml"
    sequence = read_sequence(ROOT / "pipelines" / "phantom.yaml", config=paper, method="garda_paper")
    settings = sequence.settings
    settings["garda_paper"]["features"]["encoder"] = "segmenter"
    task = sequence.task.model_copy(update={"size": (256, 256)})
    build(replace(sequence, settings=settings, task=task)).check()


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_every_pipeline_opens_with_its_command_and_its_result(file):
    first, second = file.read_text().splitlines()[:2]
    assert first.startswith(f"# garda run pipelines/{file.name} --data ")
    assert second.startswith("# result: ") and "not measured" not in second


def test_the_small_recipes_segmenter_has_fewer_than_one_and_a_half_million_parameters():
    sequence = read_sequence(ROOT / "pipelines" / "nuclei.yaml")
    segmenter = unet.build_segmenter(sequence.task, parse_settings("garda_paper", sequence.settings, "x").segmenter)
    assert sum(parameter.numel() for parameter in segmenter.parameters()) < 1.5e6


def test_the_published_recipe_has_the_published_sizes():
    sequence = read_sequence(ROOT / "pipelines" / "phantom.yaml", config=ROOT / "configs" / "paper.yaml")
    settings = parse_settings("garda_paper", sequence.settings, sequence.origin)
    paper = settings.garda_paper
    assert paper.replay.temperature == 2.0 and paper.style.content == 10.0 and paper.style.distillation == 1.0
    segmenter = unet.build_segmenter(sequence.task, settings.segmenter)
    assert 31e6 < sum(parameter.numel() for parameter in segmenter.parameters()) < 35e6


@pytest.mark.parametrize("name", ["spinal_cord", "nuclei"])
def test_the_real_sequences_have_no_problem(name, real_data):
    from rich.console import Console as RichConsole

    from garda.core.console import Console

    sequence = read_sequence(ROOT / "pipelines" / f"{name}.yaml")
    cases = [case for domain in sequence.domains for case in domain.cases]
    checks.check(sequence, real_data, cases, Console(RichConsole(quiet=True)))
