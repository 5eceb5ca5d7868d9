"""What a domain adds to the knowledge on disk, and that nothing is lost there."""

import itertools
from pathlib import Path

import pytest
import torch

from garda.core.errors import CheckpointError
from garda.data.sequence import read_sequence
from garda.handover import settings
from garda.methods import registry
from garda.methods.knowledge import Knowledge
from garda.models import adapter
from garda.models.factorised import FactorisedGenerator
from garda.training import weights
from tests.support import fakes

PIPELINES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))
MOST = 0.02  # of what the source has left, for each domain


@pytest.fixture(scope="module")
def unrounded(tmp_path_factory) -> list[Knowledge]:
    """What garda knows after each stage where no style is rounded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FactorisedGenerator, "round_style", lambda generator: None)
        return fakes.follow("garda", tmp_path_factory.mktemp("unrounded"))


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_a_domain_adds_at_most_two_percent(file, tmp_path):
    sequence = read_sequence(file, method="garda")
    found = settings.parse_settings("garda", sequence.settings, sequence.origin)
    learner = registry.build_method("garda", found, sequence.task)
    torch.manual_seed(0)
    generator, segmenter = learner.build_generator(), learner.build_segmenter()
    states, sizes = {}, []
    for domain in "abc":
        generator.add_domain(domain)
        for weight in generator.branches[-1].parameters():
            weight.data += 0.01 * torch.randn_like(weight)
        generator.round_style()
        states[domain] = adapter.adapter_state_dict(segmenter)
        Knowledge(segmenter, segmenter, generator, tuple(states), states).save(tmp_path / domain)
        sizes.append(sum(file.stat().st_size for file in (tmp_path / domain).iterdir()))
    added = [later - earlier for earlier, later in itertools.pairwise(sizes)]
    assert all(0 < more <= MOST * sizes[0] for more in added), (sizes, added)


def test_what_is_kept_comes_back_to_the_bit_and_is_kept_alike_again(tmp_path):
    known = fakes.known_by("garda")[-1]
    known.save(tmp_path / "kept")
    loaded = fakes.method("garda").load(tmp_path / "kept")
    fakes.assert_equal(fakes.weights(known), fakes.weights(loaded))
    assert {t.dtype for t in loaded.generator.state_dict().values() if t.is_floating_point()} == {torch.float32}
    loaded.save(tmp_path / "again")
    for file in (tmp_path / "kept").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_target_branch_holds_what_float16_holds_and_the_source_one_more(tmp_path):
    known = fakes.known_by("garda")[-1]
    first, *others = (branch.state_dict().values() for branch in known.generator.branches)
    assert len(others) == 2
    assert all(torch.equal(tensor, tensor.half().float()) for branch in others for tensor in branch)
    assert not all(torch.equal(tensor, tensor.half().float()) for tensor in first)
    known.save(tmp_path / "kept")
    for name, tensor in weights.read_weights(tmp_path / "kept" / "generator.safetensors").items():
        if tensor.is_floating_point():
            target = name.startswith(("branches.1.", "branches.2."))
            assert tensor.dtype == (torch.float16 if target else torch.float32), name


def test_rounding_changes_nothing_but_the_branch(unrounded):
    for rounded, plain in zip(fakes.known_by("garda"), unrounded, strict=True):
        ours, theirs = fakes.weights(rounded), fakes.weights(plain)
        targets = [name for name in ours if name.startswith("generator.branches.") and ".branches.0." not in name]
        fakes.assert_equal(*({name: kept[name] for name in kept if name not in targets} for kept in (ours, theirs)))
        assert [name for name in targets if not torch.equal(ours[name], theirs[name])] == targets
        assert all(torch.equal(ours[name], theirs[name].half().float()) for name in targets)


def test_knowledge_that_was_written_in_float32_is_read_and_stays_so(unrounded, tmp_path, monkeypatch):
    known = unrounded[1]
    with monkeypatch.context() as patch:
        patch.setattr(FactorisedGenerator, "kept_state", lambda generator: generator.state_dict())
        known.save(tmp_path / "old")
    loaded = fakes.method("garda").load(tmp_path / "old")
    fakes.assert_equal(fakes.weights(known), fakes.weights(loaded))
    loaded.save(tmp_path / "again")
    old, again = (tmp_path / name / "generator.safetensors" for name in ("old", "again"))
    assert old.read_bytes() == again.read_bytes()


WRONG = [
    ("generator", "branches.1.last.weight", kind) for kind in (torch.float64, torch.bfloat16, torch.int32, torch.bool)
]
WRONG.append(("segmenter", "conv_0.conv_0.adn.N.num_batches_tracked", torch.float16))  # which is for weights alone


@pytest.mark.parametrize(("part", "name", "kind"), WRONG)
def test_a_tensor_of_another_kind_is_refused_in_one_line(part, name, kind, tmp_path):
    fakes.known_by("garda")[1].save(tmp_path / "kept")
    file = tmp_path / "kept" / f"{part}.safetensors"
    tensors = weights.read_weights(file)
    weights.save_weights(file, tensors | {name: tensors[name].to(kind)})
    with pytest.raises(CheckpointError) as caught:
        fakes.method("garda").load(tmp_path / "kept")
    assert str(caught.value) == f"{file}: holds weights of another network; use the settings it was trained with"


def linear(value: float, rest: float = 0.1) -> torch.nn.Linear:
    layer = torch.nn.Linear(2, 3, bias=False)
    layer.weight.data = torch.full((3, 2), rest)
    layer.weight.data[1, 1] = value
    return layer


@pytest.mark.parametrize("value", [7e4, -65505.0, 1e-6, -1e-41, float("inf"), float("nan")])
def test_a_tensor_that_float16_cannot_hold_stays_as_it_is(value):
    layer, before = (linear(value, 1e-7 if abs(value) < 1e-5 else 0.1) for _ in range(2))
    weights.round_weights(layer)
    assert torch.equal(layer.weight.data.nan_to_num(nan=5.0), before.weight.data.nan_to_num(nan=5.0))
    assert weights.halve(layer.weight.data).dtype == torch.float32


@pytest.mark.parametrize("value", [65504.0, 1e-7, 0.0, -0.0])
def test_a_rounded_tensor_takes_half_the_room_and_comes_back_to_the_bit(value):
    layer = linear(value)
    weights.round_weights(layer)
    after, short = layer.weight.data, weights.halve(layer.weight.data)
    assert short.dtype == torch.float16 and after.isfinite().all()
    assert torch.equal(short.float().view(torch.int32), after.view(torch.int32))
    assert torch.allclose(after, linear(value).weight.data, rtol=2**-11, atol=2**-25)
