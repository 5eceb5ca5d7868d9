import math
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gate import hasten, main
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.methods.base import Method, SharedSettings
from garda.methods.knowledge import Knowledge
from garda.methods.oracles import Oracle
from garda.methods.registry import METHODS
from garda.models.factorised import FactorisedGenerator, FactorisedSettings
from garda.models.generator import Anatomy, Generator
from garda.safety import quality
from garda.safety.gate import inspect_incoming, inspect_learnt, measure_baseline
from garda.safety.limits import Check, GateDecision, GateSettings, SourceBaseline, Views, at_least, at_most, decide
from garda.training.device import Compute, ComputeSettings
from tests.support import fakes
from tests.support.fakes import FakeSlices

SIDE = 32
TASK = Task(name="t", classes=("background", "square"), size=(SIDE, SIDE), any_orientation=True)
COMPUTE = Compute(ComputeSettings(accelerator="cpu", precision="32"))
LIMITS = GateSettings(sample=16)


class Threshold(nn.Module):
    """What is brighter than ``at`` is foreground, the surer the larger ``slope``."""

    def __init__(self, slope: float = 40.0, at: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("slope", torch.tensor(slope))
        self.register_buffer("at", torch.tensor(at))

    def forward(self, image: Tensor) -> Tensor:
        apart = (image - self.at) * self.slope
        return torch.cat([-apart, apart], dim=1)


class Plain(Method):
    """A method whose knowledge is told what to be."""

    Settings = SharedSettings

    def adapt(self, knowledge, domain, slices, stages):
        raise NotImplementedError


METHOD = Plain(TASK, SharedSettings(), SharedSettings(), COMPUTE)


def squares(corner: Tensor) -> Tensor:
    """(B, 1, SIDE, SIDE): 1 inside a square of 10 pixels at (B, 2) corners."""
    rows, columns = ((torch.arange(SIDE) >= at[:, None]) & (torch.arange(SIDE) < at[:, None] + 10) for at in corner.T)
    return (rows[:, :, None] & columns[:, None]).float().unsqueeze(1)


STYLES = {
    "plain": lambda inside, noise: 0.2 + 0.6 * inside + 0.05 * noise,
    "dim": lambda inside, noise: 0.25 + 0.5 * inside + 0.05 * noise,
    "inverted": lambda inside, noise: 0.8 - 0.6 * inside + 0.05 * noise,
    "one": lambda inside, noise: 0.2 + 0.6 * inside[:1].expand_as(inside) + 0.02 * noise,
    "bright": lambda inside, noise: 0.72 + 0.25 * inside + 0.02 * noise,
    "black": lambda inside, noise: torch.zeros_like(inside),
    "map": lambda inside, noise: inside,
    "noise": lambda inside, noise: 0.5 + 0.2 * noise,
    "grey": lambda inside, noise: 0.5 + 0.02 * noise + 0.04 * inside,
}


class Squares(Generator):
    """Draws squares in the styles of its domains, which are ``(name, style)``."""

    def __init__(self, *styles: tuple[str, str]) -> None:
        super().__init__()
        self.domains = tuple(name for name, _ in styles)
        self._styles = [STYLES[style] for _, style in styles]
        self.register_buffer("weight", torch.ones(1))

    def add_domain(self, name: str) -> None:
        raise NotImplementedError

    def draw(self, count: int) -> Anatomy:
        return Anatomy(torch.randint(2, SIDE - 12, (count, 2)), (torch.randn(count, 1, SIDE, SIDE),))

    def sample(self, anatomy: Anatomy, domains: Tensor) -> Tensor:
        style = self._styles[int(domains[0])]
        return style(squares(anatomy.code), anatomy.noise[0]).clamp(0, 1)

    def labels(self, anatomy: Anatomy) -> Tensor:
        inside = squares(anatomy.code)
        return torch.cat([1 - inside, inside], dim=1)


class Site(Slices):
    """A site that shows squares in one style, and no label."""

    def __init__(self, style: str, count: int = 40) -> None:
        self._style, self._count = style, count

    def __len__(self) -> int:
        return self._count

    def batch(self, step: int, size: int, seed: int) -> Batch:
        random = torch.Generator().manual_seed(seed % 1000)
        corner = torch.randint(2, SIDE - 12, (size, 2), generator=random)
        noise = torch.randn(size, 1, SIDE, SIDE, generator=random)
        return Batch(STYLES[self._style](squares(corner), noise).clamp(0, 1), None)


def known(style: str | None = None, network: nn.Module | None = None, generates: bool = True) -> Knowledge:
    """Knowledge of the source, and of a target that the generator draws in ``style``."""
    styles = [("a", "plain"), *([("b", style)] if style else [])]
    generator = Squares(*styles) if generates else None
    return Knowledge(network or Threshold(), Threshold(), generator, tuple(name for name, _ in styles))  # type: ignore[arg-type]


SOURCE = measure_baseline(METHOD, known(), Site("plain"), LIMITS, 0)


def incoming(slices: Slices) -> list[Check]:
    return inspect_incoming(METHOD, known(), "b", slices, SOURCE, LIMITS, 0)


def learnt(after: Knowledge, slices: Slices | None = None, before: Knowledge | None = None) -> list[Check]:
    return inspect_learnt(METHOD, before or known(), after, slices or Site("dim"), SOURCE, LIMITS, 0)


def decisions(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.decision for check in checks}


def test_a_site_that_looks_different_passes_every_check():
    before, after = incoming(Site("dim")), learnt(known("dim"))
    assert [check.name for check in before] == ["slices", "blank", "greys", "noise", "recognition"]
    names = ["finite", "agreement", "replay", "style", "diversity", "recognition", "foreground"]
    assert [check.name for check in after] == names
    assert {*decisions(before).values(), *decisions(after).values()} == {"promote"}
    assert decide([*before, *after]).reasons == []


WRONG = {"slices": Site("dim", count=3), "blank": Site("black"), "greys": Site("map"), "noise": Site("noise")}
SPOILT = {
    "agreement": known("dim", Threshold(slope=-40.0)),
    "replay": known("inverted"),
    "style": known("bright"),
    "diversity": known("one"),
    "recognition": known("dim", Threshold(slope=0.5)),
    "foreground": known("dim", Threshold(at=-1.0)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_should_not_be_learnt_is_refused_for_its_reason(name):
    checks = incoming(WRONG[name])
    assert decisions(checks)[name] == "refuse"
    assert decide(checks).decision == "refuse"


def test_a_few_slices_and_what_is_not_recognised_yet_are_held_and_not_refused():
    found = decide(incoming(Site("dim", count=5)))
    assert found.decision == "hold"
    assert found.reasons == ["b: slices is 5, must be at least 8"]
    assert decisions(incoming(Site("grey")))["recognition"] == "hold"


@pytest.mark.parametrize("name", SPOILT)
def test_what_has_gone_wrong_in_learning_is_refused_for_its_reason(name):
    assert decisions(learnt(SPOILT[name]))[name] == "refuse"


def test_weights_that_are_not_finite_are_all_that_is_told():
    network = Threshold(slope=math.nan)
    (check,) = learnt(known("dim", network))
    assert (check.name, check.decision, check.value) == ("finite", "refuse", 1)
    generator = known("dim")
    generator.generator.weight.fill_(math.inf)  # type: ignore[union-attr, operator]
    assert decisions(learnt(generator)) == {"finite": "refuse"}
    domain_state = {"b": {"scale": torch.tensor([1.0, math.nan])}}
    assert decisions(learnt(replace(known("dim"), domain_state=domain_state))) == {"finite": "refuse"}


def test_without_a_generator_the_images_alone_decide():
    before, after = known(generates=False), replace(known(generates=False), domains=("a", "b"))
    source = measure_baseline(METHOD, before, Site("plain"), LIMITS, 0)
    assert source.replay is None and source.look is None and source.views.agreed is None
    checks = inspect_learnt(METHOD, before, after, Site("dim"), source, LIMITS, 0)
    assert decisions(checks) == {"finite": "promote", "recognition": "promote", "foreground": "promote"}
    assert next(check for check in checks if check.name == "recognition").limit == pytest.approx(0.79 * 1.07)


def test_every_domain_met_before_is_asked_for_and_none_that_the_generator_does_not_draw():
    undrawn = learnt(replace(known(), domains=("a", "b")))
    assert set(decisions(undrawn)) == {"finite", "agreement", "recognition", "foreground"}
    before = known("dim")
    generator = Squares(("a", "plain"), ("b", "dim"), ("c", "dim"))
    after = replace(before, generator=generator, domains=("a", "b", "c"))
    checks = [check for check in learnt(after, before=before) if check.name == "agreement"]
    assert [(check.domain, check.value) for check in checks] == [("a", 1.0), ("b", 1.0)]


def test_networks_that_are_equal_are_not_asked_and_others_are(monkeypatch):
    """What is not computed is what would have come out."""
    asked, own = [], quality.agreement
    monkeypatch.setattr(quality, "agreement", lambda new, old: asked.append(1) or own(new, old))
    (equal,) = [check for check in learnt(known("dim")) if check.name == "agreement"]
    assert len(asked) == 1  # of the new style, on labelled replay
    (nearly,) = [check for check in learnt(known("dim", Threshold(slope=41.0))) if check.name == "agreement"]
    assert len(asked) == 3 and equal == nearly


def test_equal_seeds_give_equal_checks_and_leave_the_random_numbers_as_they_were():
    torch.manual_seed(3)
    first = incoming(Site("dim")) + learnt(known("dim"))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    assert incoming(Site("dim")) + learnt(known("dim")) == first
    other = inspect_learnt(METHOD, known(), known("dim"), Site("dim"), SOURCE, LIMITS, 1)
    assert other != learnt(known("dim"))


@pytest.mark.parametrize(
    ("check", "limits", "values"),
    [(at_least, (0.9, 0.8), (0.9, 0.85, 0.79, math.nan)), (at_most, (0.1, 0.2), (0.1, 0.15, 0.21, math.nan))],
)
def test_limits_are_kept_by_values_on_them_and_never_by_what_is_no_number(check, limits, values):
    found = [check("x", "b", value, limits, "share") for value in values]
    assert [each.decision for each in found] == ["promote", "hold", "refuse", "refuse"]
    assert [each.limit for each in found] == [limits[0], limits[0], limits[1], limits[1]]
    assert [each.value for each in found] == [*values[:3], None]


def test_the_worst_check_decides_and_stands_first_in_the_reasons():
    checks = [
        at_least("x", "b", 1.0, (0.9, 0.8), "one"),
        at_least("y", "b", 0.85, (0.9, 0.8), "two"),
        at_most("z", "a", math.nan, (0.1, 0.2), "three"),
    ]
    found = decide(checks)
    assert (found.decision, decide(checks[:2]).decision, decide(checks[:1]).decision) == ("refuse", "hold", "promote")
    assert found.reasons == ["a: three is no number, must be at most 0.2", "b: two is 0.85, must be at least 0.9"]
    assert GateDecision.model_validate_json(found.model_dump_json()) == found
    assert SourceBaseline.model_validate_json(SOURCE.model_dump_json()) == SOURCE


def test_recognition_is_the_geometric_mean_of_the_ratios_of_the_views_that_both_have():
    source = Views(steady=0.8, certain=0.9, agreed=0.8)
    assert source.relative(source) == pytest.approx(1)
    assert Views(steady=0.8, certain=0.9, agreed=0.1).relative(source) == pytest.approx(0.5)
    assert Views(steady=0.2, certain=0.9).relative(source) == pytest.approx(0.5)


def test_a_factorised_generator_reads_anatomy_and_others_do_not():
    image = Site("plain").batch(0, 3, 0).image
    settings = FactorisedSettings(code=2, appearance=3, widths=(4, 8), prior_width=8)
    read = quality.read_anatomy(FactorisedGenerator(1, 2, (SIDE, SIDE), settings).eval(), image, COMPUTE)
    assert read is not None and read.shape == (3, 2, SIDE, SIDE)
    assert torch.allclose(read.sum(dim=1), torch.ones(3, SIDE, SIDE))
    assert quality.read_anatomy(Squares(("a", "plain")), image, COMPUTE) is None
    assert quality.read_anatomy(None, image, COMPUTE) is None


def test_an_empty_margin_makes_no_label_map_and_interpolated_edges_save_none():
    image = Site("plain").batch(0, 4, 0).image
    framed = nn.functional.pad(image, (20, 20, 20, 20))
    assert quality.few_greys(framed, 2) < 0.2
    maps = nn.functional.interpolate(Site("map").batch(0, 4, 0).image, scale_factor=1.7, mode="bilinear")
    assert quality.few_greys(maps, 2) > 0.6


def test_what_observations_of_pairs_are_at_their_ends():
    inside = squares(torch.tensor([[2, 2], [15, 15]]))
    one, other = (torch.cat([1 - part, part], dim=1) for part in (inside, inside.flip(0)))
    assert quality.agreement(one, one) == 1 and quality.agreement(one, other) < 0.01
    assert quality.diversity(inside[:1].repeat(3, 1, 1, 1)) == pytest.approx(0, abs=1e-4)
    assert quality.diversity(inside) > 1
    assert quality.grey_distance(inside, inside.flip(0)) == 0
    assert quality.grey_distance(torch.zeros_like(inside), torch.full_like(inside, 0.25)) == pytest.approx(0.25)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not issubclass(method, Oracle)])
def test_every_method_goes_through_the_gate(name, monkeypatch):
    monkeypatch.setattr(FakeSlices, "__len__", lambda slices: len(slices.image), raising=False)
    method, (source, first, second) = fakes.method(name), fakes.known_by(name)
    limits = GateSettings(sample=4)
    labelled, target = FakeSlices(0, with_labels=True), FakeSlices(2, with_labels=False)
    found = measure_baseline(method, source, labelled, limits, 0)
    checks = inspect_incoming(method, first, "c", target, found, limits, 0)
    checks += inspect_learnt(method, first, second, target, found, limits, 0)
    assert all(check.value is not None for check in checks)
    replayed = [check.domain for check in checks if check.name == "agreement"]
    draws = () if source.generator is None else first.generator.domains
    assert replayed == list(draws)


def test_the_benchmark_prints_both_error_rates(pipeline, run_of, monkeypatch, capsys):
    data = pipeline.parent / "data"
    given = [pipeline, "--data", data, "--run", run_of("garda_paper"), "--other", pipeline, data]
    monkeypatch.setattr(sys, "argv", ["gate", *map(str, given)])
    main()
    *lines, own, wrong = capsys.readouterr().out.splitlines()
    kinds = Counter(line[:18].strip() for line in lines[1:])
    assert kinds == {
        **{"own site": 2, "another organ": 3, "labels as images": 3, "black": 2, "noise": 3},
        **{"two slices": 1, "learning rate": 2},
    }
    assert own.startswith("own sites not promoted: ") and own.endswith(" of 2")
    assert wrong.startswith("wrong inputs not refused: ") and wrong.endswith(f" of {kinds.total() - 2}")


def test_settings_are_hastened_at_every_depth():
    faster = hasten({"learning_rate": 0.5, "steps": 3, "target": {"learning_rate": 0.001, "batch": 2}})
    assert faster == {"learning_rate": 50.0, "steps": 3, "target": {"learning_rate": pytest.approx(0.1), "batch": 2}}
