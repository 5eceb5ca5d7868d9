"""What every method promises, whichever is registered: each stage is learnt once more, under another question."""

from dataclasses import replace

import pytest
import torch

from garda.core.errors import CheckpointError, ConfigError, Interrupted
from garda.core.signals import Stopping
from garda.data import calibrate
from garda.data.dataset import Slices
from garda.handover.settings import deciding_settings, parse_settings
from garda.methods import garda, registry
from garda.methods.base import Method
from garda.methods.knowledge import DOMAIN_STATE_LIMIT, Knowledge
from garda.methods.registry import METHODS
from garda.models.features import FeatureSettings
from garda.models.objectives import SupervisedObjective
from garda.models.reading import Reading
from garda.training.cache import Cache, Stage
from garda.training.loop import Phase
from tests.support import fakes
from tests.support.errors import told
from tests.support.fakes import TASK, FakeSlices

NOTHING_LEARNT = ("histogram", "randomised", "source_only")  # at a target
NEVER_CHANGED = ("garda", "adabn", "randomised", "source_only")  # the network of a domain that was met

each_method = pytest.mark.parametrize("name", METHODS)


def states(learner: Method, knowledge: Knowledge) -> dict[str, dict[str, torch.Tensor]]:
    """The state of the network that reads each domain, one that is not met included."""
    return {domain: learner.network_for(knowledge, domain).state_dict() for domain in "abcd"}


def select(knowledge: Knowledge, *parts: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in fakes.weights(knowledge).items() if name.startswith(parts)}


@each_method
def test_equal_seeds_give_equal_weights_at_the_source(name, tmp_path):
    again = fakes.learn_source(fakes.method(name), tmp_path)
    fakes.assert_equal(fakes.weights(fakes.known_by(name)[0]), fakes.weights(again))


@each_method
def test_a_target_stage_that_was_stopped_ends_with_equal_weights_and_leaves_earlier_knowledge(name, tmp_path):
    learner, (source, whole, _), stopping = fakes.method(name), fakes.known_by(name), Stopping()
    before = fakes.weights(source)

    def stop(done: int, total: int) -> None:
        stopping.exit_code = 75 if done == 2 else None

    def stopped(part: str) -> Phase:
        return Phase(part, tmp_path / f"1-{part}", seed=1, stopping=stopping, progress=stop)

    if name not in NOTHING_LEARNT:
        with pytest.raises(Interrupted):
            fakes.learn_target(learner, source, "b", Stage(stopped))
    again = fakes.learn_target(learner, source, "b", fakes.stages(tmp_path, 1))
    fakes.assert_equal(fakes.weights(whole), fakes.weights(again))
    fakes.assert_equal(before, fakes.weights(source))
    fakes.assert_equal(select(source, "teacher"), select(again, "teacher"))


@each_method
def test_knowledge_that_was_kept_goes_on_as_the_one_in_memory(name, tmp_path):
    learner, (_, known, last) = fakes.method(name), fakes.known_by(name)
    known.save(tmp_path / "kept")
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".safetensors", ".json"}
    loaded = learner.load(tmp_path / "kept")
    assert loaded.domains == ("a", "b")
    fakes.assert_equal(fakes.weights(known), fakes.weights(loaded))
    for ours, theirs in zip(states(learner, known).values(), states(learner, loaded).values(), strict=True):
        fakes.assert_equal(ours, theirs)
    later = fakes.learn_target(learner, loaded, "c", fakes.stages(tmp_path / "again", 2))
    fakes.assert_equal(fakes.weights(last), fakes.weights(later))


@each_method
def test_domains_are_named_in_order_and_networks_only_predict(name):
    learner, known = fakes.method(name), fakes.known_by(name)
    assert [each.domains for each in known] == [("a",), ("a", "b"), ("a", "b", "c")]
    for network in (learner.network_for(each, domain) for each in known for domain in "abcd"):
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())


@each_method
def test_what_reads_equally_has_networks_that_are_equal_to_the_bit(name):
    learner, (_, second, third) = fakes.method(name), fakes.known_by(name)
    before, after = states(learner, second), states(learner, third)
    for domain in "abcd":
        equal = all(torch.equal(value, after[domain][key]) for key, value in before[domain].items())
        assert learner.reads_equally(second, third, domain) == equal
        assert equal or name not in NEVER_CHANGED or domain not in second.domains


def test_garda_reads_every_domain_as_was_chosen_and_an_unknown_one_with_the_mixture():
    learner, known = fakes.method("garda"), fakes.known_by("garda")[-1]
    experts = {**known.experts, "mixture": known.segmenter}
    fakes.assert_equal(states(learner, known)["d"], known.segmenter.state_dict())
    for mask in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]):
        state = {garda.MASK: torch.tensor(mask, dtype=torch.uint8), garda.ZOOM: torch.tensor(0.7)}
        chosen = replace(known, domain_state={**known.domain_state, "b": state})
        network, names = (
            learner.network_for(chosen, "b"),
            [n for n, used in zip(garda.NAMES, mask, strict=True) if used],
        )
        image = torch.rand(2, 1, 16, 16)
        mean = torch.stack([torch.softmax(experts[name](image), dim=1) for name in names]).mean(dim=0)
        assert torch.allclose(torch.softmax(network(image), dim=1), mean, atol=1e-5)
        assert learner.zoom_for(chosen, "b") == 0.7 and learner.zoom_for(chosen, "d") == 1
        assert not learner.reads_equally(known, chosen, "b")


def test_the_source_keeps_its_best_reading_and_what_its_classes_look_like():
    source = fakes.known_by("garda")[0]
    assert {*source.domain_state["a"]} == {garda.MASK, garda.ZOOM, garda.PLAUSIBLE, garda.CONSENSUS}
    assert source.domain_state["a"][garda.PLAUSIBLE].shape == (1, 2)
    plain, mixture = (fakes.known_by(name)[0].segmenter for name in ("source_only", "randomised"))
    fakes.assert_equal(plain.state_dict(), source.experts["plain"].state_dict())
    fakes.assert_equal(mixture.state_dict(), source.segmenter.state_dict())


def test_methods_share_one_source_segmenter_unless_their_start_is_their_idea():
    parts = ("segmenter", "teacher")
    first, *others = (select(fakes.known_by(name)[0], *parts) for name in METHODS if name != "source_only")
    for other in others:
        fakes.assert_equal(first, other)


def test_the_published_student_changes_and_the_lower_bound_does_not():
    source, _, last = fakes.known_by("source_only")
    fakes.assert_equal(fakes.weights(source), fakes.weights(last))
    first, *_, last = (select(known, "segmenter") for known in fakes.known_by("garda_paper"))
    assert any("weight" in name and not torch.equal(value, last[name]) for name, value in first.items())


def test_damaged_knowledge_is_told_in_one_line(tmp_path):
    learner, known, kept = fakes.method("source_only"), fakes.known_by("source_only")[0], tmp_path / "kept"
    assert "holds no knowledge of a finished stage" in told(CheckpointError, learner.load, tmp_path / "none")
    known.save(kept)
    task = TASK.model_copy(update={"classes": ("background", "organ", "lesion")})
    with pytest.raises(CheckpointError, match="holds weights of another network"):
        registry.build_method("source_only", learner.shared, task).load(kept)
    file = kept / "segmenter.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError) as caught:
        learner.load(kept)
    assert str(caught.value) == f"{file}: is truncated or damaged; copy the file again"
    file.unlink()
    assert "no such file; copy the whole folder" in told(CheckpointError, learner.load, kept)


def test_a_domain_keeps_little():
    segmenter = fakes.known_by("source_only")[0].segmenter
    with pytest.raises(ValueError, match=f"a takes 160000 bytes, more than {DOMAIN_STATE_LIMIT}"):
        Knowledge(segmenter, segmenter, None, ("a",), {"a": {"image": torch.zeros(200, 200)}})


def test_an_unknown_method_is_told_with_the_file_and_those_there_are():
    with pytest.raises(ConfigError) as caught:
        parse_settings("gardapaper", {}, "small.yaml")
    assert str(caught.value) == f"small.yaml: unknown method 'gardapaper'; use one of {', '.join(sorted(METHODS))}"


def test_other_methods_blocks_and_weights_paths_decide_nothing():
    settings = parse_settings("garda_paper", {"garda_paper": {"features": {"weights": "/secret/vgg.pth"}}}, "x")
    assert "/secret" not in str(deciding_settings("garda_paper", settings))
    assert "garda_paper" not in deciding_settings("source_only", settings)
    assert settings.garda_paper.features == FeatureSettings(weights="/secret/vgg.pth")


REFUSED = {"garda": "adapts a generator", "garda_paper": "adapts a StyleGenerator"}


@pytest.mark.parametrize("name", ["advent", "fda_replay", *REFUSED])
def test_replay_refuses_knowledge_without_its_generator(name, tmp_path):
    source = fakes.known_by("source_only")[0]
    with pytest.raises(TypeError, match=REFUSED.get(name, "replay needs a generator")):
        fakes.method(name).adapt(source, "b", FakeSlices(1, with_labels=False), fakes.stages(tmp_path, 9))


def test_randomised_starts_randomised_and_source_only_plain_whatever_the_others_do():
    assert fakes.method("randomised").source_settings.randomisation is not None
    for name, randomised in (("source_only", False), ("garda_paper", True)):
        settings = parse_settings(name, {"source": {"randomisation": {}}}, "x")
        assert (registry.build_method(name, settings, TASK).source_settings.randomisation is not None) == randomised


def faint() -> FakeSlices:
    """A square that hardly stands out of noise."""
    slices = FakeSlices(0, with_labels=True)
    slices.image = 0.47 + 0.05 * (slices.image - 0.5)
    slices.image[:, :, 4:12, 4:12] += 0.06
    return slices


def test_a_source_with_faint_classes_is_randomised_less(tmp_path, monkeypatch):
    learner, noted, used = fakes.method("randomised"), [], []
    whole = learner.source_settings.randomisation
    monkeypatch.setattr(
        "garda.methods.base.SupervisedObjective", lambda *given: used.append(given) or SupervisedObjective(*given)
    )
    for number, slices in enumerate([FakeSlices(0, with_labels=True), faint()]):

        def open_phase(part: str, number: int = number) -> Phase:
            return Phase(part, tmp_path / str(number) / part, 0, log=lambda _, found: noted.append(found))

        learner.learn_source("a", slices, None, Stage(open_phase))
    strengths = [found["randomisation_strength"] for found in noted if "randomisation_strength" in found]
    assert len(strengths) == 2 and strengths[1] < strengths[0] <= 1
    kinds = [given[2].randomisation for given in used]
    assert kinds[::2] == [None, None]
    assert kinds[1::2] == [calibrate.scale_strength(whole, strength) for strength in strengths]


def test_a_randomised_segmenter_goes_on_from_the_plain_one(tmp_path, monkeypatch):
    starts = []
    monkeypatch.setattr(
        "garda.methods.base.SupervisedObjective", lambda *given: starts.append(given[-1]) or SupervisedObjective(*given)
    )
    fakes.learn_source(fakes.method("randomised"), tmp_path / "randomised")
    plain = fakes.learn_source(fakes.method("source_only"), tmp_path / "plain")
    none, start, again = starts
    assert none is None and again is None
    fakes.assert_equal(start.state_dict(), plain.segmenter.state_dict())


def test_runs_share_what_they_learn_from_the_source(tmp_path):
    learner, seconds = fakes.method("source_only"), []

    def learn(name: str, seed: int) -> Knowledge:
        def open_phase(part: str) -> Phase:
            return Phase(part, tmp_path / name / part, seed=seed, spent=seconds.append)

        cached = Stage(open_phase, Cache(tmp_path / "cache", {"seed": seed}))
        return learner.learn_source("a", FakeSlices(0, with_labels=True), None, cached)

    first, again, other = learn("first", 0), learn("again", 0), learn("other", 1)
    fakes.assert_equal(fakes.weights(first), fakes.weights(again))
    assert not (tmp_path / "again").exists()
    assert seconds[0] <= seconds[1] == seconds[2] > 0  # at the checkpoint, at the end, from the cache
    assert (tmp_path / "other" / "plain").exists()
    assert not torch.equal(next(iter(fakes.weights(first).values())), next(iter(fakes.weights(other).values())))
    for file in (tmp_path / "cache").glob("*.json"):
        file.write_text("{}")
    assert "is damaged; delete it, the network is learnt again" in told(CheckpointError, learn, "damaged", 0)


@pytest.mark.parametrize("fit", ["crop", "patch"])
def test_a_lesson_is_shown_slices_at_the_readings_zoom(fit):
    learner = fakes.method("garda")
    learner.task = TASK.model_copy(update={"fit": fit})
    volume = fakes.bright_square(side=8, size=32 if fit == "patch" else 16)
    shown = Slices([volume], learner.task, with_labels=False)
    areas = [float((learner._show(shown, 8, zoom, seed=0) > 0.5).float().mean()) for zoom in (1.0, 0.5)]
    assert learner._show(shown, 8, 0.5, seed=0).shape[-2:] == TASK.size
    assert areas[1] < areas[0]


@pytest.mark.parametrize(("after", "kept"), [(0.85, True), (0.80, False)])
def test_a_lesson_is_kept_if_slices_say_so_that_were_not_learnt_from(after, kept, tmp_path, monkeypatch):
    learner, offered = fakes.method("garda"), []
    learner.settings = learner.settings.model_copy(
        update={"lesson": learner.settings.lesson.model_copy(update={"gain": 0.02})}
    )
    found = Reading(("plain",), 1.0, 0.8, True)
    monkeypatch.setattr(learner, "_judge", lambda *given: (found, replace(found, agreement=after)))
    known = fakes.known_by("garda")[0]
    opened = replace(fakes.stages(tmp_path, 1), offer=offered.extend)
    learnt = fakes.learn_target(learner, known, "b", opened)
    (taught,) = (each for each in offered if "taught" in each.name)
    assert taught.chosen == kept
    assert any(name not in ("reading.experts", "reading.zoom") for name in learnt.domain_state["b"]) == kept


@pytest.mark.parametrize(("alike", "chosen"), [(0.6, "plain"), (0.4, "mixture")])
def test_where_experts_contradict_each_other_a_site_is_read_as_one_not_met(alike, chosen):
    learner = fakes.method("garda")
    known = fakes.known_by("garda")[0]
    source = {**known.domain_state["a"], garda.CONSENSUS: torch.tensor(0.8)}
    known = replace(known, domain_state={"a": source})
    readings = [Reading((name,), 1.0, agreed, True) for name, agreed in (("plain", 0.9), ("mixture", 0.8))]
    found, by = learner._choose(known, readings, alike)
    assert (found.name, by) == (chosen, "views" if chosen == "plain" else "contradiction")
    old = replace(known, domain_state={"a": {}})
    assert learner._choose(old, readings, alike)[0].name == "plain"
    implausible = [readings[0], replace(readings[1], plausible=False)]
    assert learner._choose(known, implausible, alike)[0].name == "plain"
