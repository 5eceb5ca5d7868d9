"""What every method promises, whichever is registered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from garda.core.errors import CheckpointError, ConfigError, Interrupted
from garda.core.signals import Stopping
from garda.data import calibrate
from garda.data.dataset import Batch
from garda.handover.settings import deciding_settings, parse_settings
from garda.methods import registry
from garda.methods.base import Method
from garda.methods.garda_paper import GardaPaper
from garda.methods.knowledge import DOMAIN_STATE_LIMIT, Knowledge
from garda.methods.registry import METHODS
from garda.models.features import FeatureSettings
from garda.models.objectives import SupervisedObjective
from garda.training.cache import Cache, Stage
from garda.training.loop import Phase
from tests.support import fakes
from tests.support.fakes import TASK, FakeSlices

NOTHING_LEARNT = ("histogram", "randomised", "source_only")  # at a target


def networks(learner: Method, knowledge: Knowledge) -> dict[str, torch.Tensor]:
    """The state of the network that reads each domain, one that is not met included."""
    return {
        f"{domain}.{name}": value
        for domain in "abcd"
        for name, value in learner.network_for(knowledge, domain).state_dict().items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_give_equal_weights(name, tmp_path):
    for first, second in zip(fakes.known_by(name), fakes.follow(name, tmp_path), strict=True):
        fakes.assert_equal(fakes.weights(first), fakes.weights(second))


@pytest.mark.parametrize("name", METHODS)
def test_domains_are_named_in_order(name):
    assert [known.domains for known in fakes.known_by(name)] == [("a",), ("a", "b"), ("a", "b", "c")]


@pytest.mark.parametrize("name", ["garda", "adabn", "randomised", "source_only"])
def test_a_domain_that_was_met_is_read_by_the_same_network_ever_after(name):
    learner = fakes.method(name)
    _, second, third = fakes.known_by(name)
    for domain in "ab":
        before, after = (learner.network_for(known, domain).state_dict() for known in (second, third))
        fakes.assert_equal(before, after)


@pytest.mark.parametrize("name", METHODS)
def test_what_reads_equally_has_networks_that_are_equal_to_the_bit(name):
    learner = fakes.method(name)
    _, second, third = fakes.known_by(name)
    for domain in "abcd":
        before, after = (learner.network_for(known, domain).state_dict() for known in (second, third))
        equal = all(torch.equal(before[key], after[key]) for key in before)
        assert learner.reads_equally(second, third, domain) == equal


def test_garda_reads_every_domain_with_its_own_share_and_an_unknown_one_with_the_trunk():
    learner, known = fakes.method("garda"), fakes.known_by("garda")[-1]
    shares = {domain: learner.network_for(known, domain).state_dict() for domain in "abcd"}
    fakes.assert_equal(shares["d"], known.segmenter.state_dict())
    fakes.assert_equal(known.source_segmenter.state_dict(), known.segmenter.state_dict())
    own = set(known.domain_state["a"])
    for domain in "abc":
        changed = {name for name, value in shares[domain].items() if not torch.equal(value, shares["d"][name])}
        assert changed and changed <= own
    assert all(not name.startswith(("down_2.convs.conv_0.conv.", "final_conv")) for name in own)


@pytest.mark.parametrize("name", METHODS)
def test_earlier_knowledge_is_left_as_it_was(name, tmp_path):
    learner = fakes.method(name)
    source = fakes.known_by(name)[0]
    before = fakes.weights(source)
    later = fakes.learn_target(learner, source, "b", fakes.stages(tmp_path, 1))
    fakes.assert_equal(before, fakes.weights(source))
    assert source.domains == ("a",)
    teacher = fakes.weights(later)
    fakes.assert_equal(
        {key: value for key, value in before.items() if key.startswith("teacher")},
        {key: value for key, value in teacher.items() if key.startswith("teacher")},
    )


@pytest.mark.parametrize("name", METHODS)
def test_knowledge_that_was_kept_goes_on_as_the_one_in_memory(name, tmp_path):
    known = fakes.known_by(name)
    known[1].save(tmp_path / "kept")
    learner = fakes.method(name)
    loaded = learner.load(tmp_path / "kept")
    fakes.assert_equal(fakes.weights(known[1]), fakes.weights(loaded))
    fakes.assert_equal(networks(learner, known[1]), networks(learner, loaded))
    assert loaded.domains == ("a", "b")
    later = fakes.learn_target(learner, loaded, "c", fakes.stages(tmp_path / "again", 2))
    fakes.assert_equal(fakes.weights(known[2]), fakes.weights(later))
    kept = {path.suffix for path in (tmp_path / "kept").iterdir()}
    assert kept == {".safetensors", ".json"}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOTHING_LEARNT])
def test_a_target_stage_that_was_stopped_ends_with_equal_weights(name, tmp_path):
    learner = fakes.method(name)
    source, whole, _ = fakes.known_by(name)
    stopping = Stopping()

    def stop(done: int, total: int) -> None:
        stopping.exit_code = 75 if done == 2 else None

    def stopped(part: str) -> Phase:
        return Phase(part, tmp_path / f"1-{part}", seed=1, stopping=stopping, progress=stop)

    with pytest.raises(Interrupted):
        fakes.learn_target(learner, source, "b", Stage(stopped))
    again = fakes.learn_target(learner, source, "b", fakes.stages(tmp_path, 1))
    fakes.assert_equal(fakes.weights(whole), fakes.weights(again))


@pytest.mark.parametrize("name", METHODS)
def test_networks_predict_without_gradients_and_batches(name):
    learner = fakes.method(name)
    for known in fakes.known_by(name):
        for domain in "abcd":
            network = learner.network_for(known, domain)
            assert not network.training
            assert not any(weight.requires_grad for weight in network.parameters())


def test_methods_share_one_source_segmenter_unless_their_start_is_their_idea():
    first, *others = (fakes.known_by(name)[0] for name in METHODS if name != "randomised")
    for other in others:
        fakes.assert_equal(
            {k: v for k, v in fakes.weights(first).items() if k.startswith(("segmenter", "teacher"))},
            {k: v for k, v in fakes.weights(other).items() if k.startswith(("segmenter", "teacher"))},
        )


def test_the_published_student_changes_and_the_lower_bound_does_not():
    source, _, last = fakes.known_by("source_only")
    fakes.assert_equal(fakes.weights(source), fakes.weights(last))
    source, _, last = fakes.known_by("garda_paper")
    changed = [
        n
        for n, v in fakes.weights(source).items()
        if n.startswith("segmenter") and "weight" in n and not torch.equal(v, fakes.weights(last)[n])
    ]
    assert changed


def test_damaged_knowledge_is_told_in_one_line(tmp_path):
    known = fakes.known_by("source_only")[0]
    learner = fakes.method("source_only")
    with pytest.raises(CheckpointError, match="holds no knowledge of a finished stage"):
        learner.load(tmp_path / "none")
    known.save(tmp_path / "kept")
    file = tmp_path / "kept" / "segmenter.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError) as caught:
        learner.load(tmp_path / "kept")
    assert str(caught.value) == f"{file}: is truncated or damaged; copy the file again"
    file.unlink()
    with pytest.raises(CheckpointError, match="no such file; copy the whole folder"):
        learner.load(tmp_path / "kept")
    known.save(tmp_path / "kept")
    wide = TASK.model_copy(update={"classes": ("background", "organ", "lesion")})
    other = registry.build_method("source_only", learner.shared, wide)
    with pytest.raises(CheckpointError, match="holds weights of another network"):
        other.load(tmp_path / "kept")


def test_statistics_survive_and_stay_few(tmp_path):
    known = fakes.known_by("source_only")[0]
    numbers = {"a": {"landmarks": torch.arange(3.0)}}
    Knowledge(known.segmenter, known.source_segmenter, None, ("a",), numbers).save(tmp_path / "kept")
    assert torch.equal(
        fakes.method("source_only").load(tmp_path / "kept").domain_state["a"]["landmarks"], torch.arange(3.0)
    )
    with pytest.raises(ValueError, match=f"more than {DOMAIN_STATE_LIMIT}"):
        Knowledge(known.segmenter, known.source_segmenter, None, ("a",), {"a": {"image": torch.zeros(200, 200)}})


def test_settings_name_the_file_and_the_nearest_key():
    with pytest.raises(ConfigError) as caught:
        parse_settings("garda_paper", {"garda_paper": {"stile": {}}}, "small.yaml")
    assert str(caught.value) == "small.yaml: unknown key 'garda_paper.stile'; did you mean 'style'?"
    with pytest.raises(ConfigError) as caught:
        parse_settings("gardapaper", {}, "small.yaml")
    assert str(caught.value) == f"small.yaml: unknown method 'gardapaper'; use one of {', '.join(sorted(METHODS))}"


def test_other_methods_blocks_and_weights_paths_decide_nothing():
    settings = parse_settings("garda_paper", {"garda_paper": {"features": {"weights": "/secret/vgg.pth"}}}, "x")
    assert "/secret" not in str(deciding_settings("garda_paper", settings))
    assert "garda_paper" not in deciding_settings("source_only", settings)
    assert settings.garda_paper.features == FeatureSettings(weights="/secret/vgg.pth")


def test_garda_paper_refuses_knowledge_without_its_generator(tmp_path):
    source = fakes.known_by("source_only")[0]
    learner = fakes.method("garda_paper")
    assert isinstance(learner, GardaPaper)
    with pytest.raises(TypeError, match="adapts a StyleGenerator"):
        learner.adapt(source, "b", FakeSlices(1, with_labels=False), fakes.stages(tmp_path, 9))


def test_randomised_starts_randomised_and_source_only_plain_whatever_the_others_do(tmp_path):
    assert fakes.method("randomised").source_settings.randomisation is not None
    for name, randomised in (("source_only", False), ("garda_paper", True)):
        settings = parse_settings(name, {"source": {"randomisation": {}}}, "x")
        assert (registry.build_method(name, settings, TASK).source_settings.randomisation is not None) == randomised


class FaintSlices(FakeSlices):
    """A square that hardly stands out of noise."""

    def __init__(self) -> None:
        super().__init__(0, with_labels=True)
        self.label = torch.zeros(8, 16, 16, dtype=torch.long)
        self.label[:, 4:12, 4:12] = 1
        self.image = (0.5 + 0.06 * self.label[:, None] + 0.05 * (self.image - 0.5)).clamp(0, 1)

    def batch(self, step: int, size: int, seed: int) -> Batch:
        chosen = (torch.arange(size) + step) % 8
        return Batch(self.image[chosen], self.label[chosen])


def test_a_source_with_faint_classes_is_randomised_less(tmp_path, monkeypatch):
    learner, noted, used = fakes.method("randomised"), [], []
    whole = learner.source_settings.randomisation
    monkeypatch.setattr(
        "garda.methods.base.SupervisedObjective", lambda *given: used.append(given[2]) or SupervisedObjective(*given)
    )
    for slices in (FakeSlices(0, with_labels=True), FaintSlices()):
        folder = tmp_path / type(slices).__name__
        opened = Stage(lambda part, folder=folder: Phase(part, folder, 0, log=lambda _, found: noted.append(found)))
        learner.learn_source("a", slices, opened)
    strengths = [found["randomisation_strength"] for found in noted if "randomisation_strength" in found]
    assert len(strengths) == 2 and strengths[1] < strengths[0] <= 1
    assert [lesson.randomisation for lesson in used] == [
        calibrate.scale_strength(whole, strength) for strength in strengths
    ]


def test_runs_share_what_they_learn_from_the_source(tmp_path):
    learner, seconds = fakes.method("source_only"), []

    def shelved(folder: Path, seed: int) -> Stage:
        def open_stage(part: str) -> Phase:
            return Phase(part, folder / part, seed=seed, ended=seconds.append)

        return Stage(open_stage, Cache(tmp_path / "shelf", {"seed": seed}))

    slices = FakeSlices(0, with_labels=True)
    first = learner.learn_source("a", slices, shelved(tmp_path / "first", 0))
    again = learner.learn_source("a", slices, shelved(tmp_path / "again", 0))
    other = learner.learn_source("a", slices, shelved(tmp_path / "other", 1))
    fakes.assert_equal(fakes.weights(first), fakes.weights(again))
    assert not (tmp_path / "again").exists()
    assert seconds[0] == seconds[1] > 0
    assert (tmp_path / "other" / "segmenter").exists()
    assert not torch.equal(next(iter(fakes.weights(first).values())), next(iter(fakes.weights(other).values())))
    for facts in (tmp_path / "shelf").glob("*.json"):
        facts.write_text("{}")
    with pytest.raises(CheckpointError, match="is damaged; delete it, the network is learnt again"):
        learner.learn_source("a", slices, shelved(tmp_path / "damaged", 0))
