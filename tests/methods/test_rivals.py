"""What sets each rival apart, and what could go wrong with it."""

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from garda.core.errors import ConfigError, Interrupted
from garda.core.signals import Stopping
from garda.data import dataset
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.data.volume import Frame, Volume
from garda.handover.settings import parse_settings
from garda.methods import advent, fda_replay, histogram, registry, tent
from garda.methods.advent import AdventSettings, AdversarialObjective
from garda.methods.base import Method
from garda.methods.cotta import MeanTeacherObjective, MeanTeacherSettings
from garda.methods.fda_replay import StyleBank
from garda.methods.knowledge import Knowledge
from garda.models.generator import Anatomy, Generator
from garda.models.replay import Replay
from garda.training.cache import Stage
from garda.training.loop import Phase
from tests.support import fakes
from tests.support.errors import told
from tests.support.fakes import TASK, assert_equal

TINY = fakes.method("source_only")


def volume(image: torch.Tensor, label: torch.Tensor | None = None, labelled: torch.Tensor | None = None) -> Volume:
    return Volume("c", image, label, labelled, np.eye(4), None, Frame())


def squares(seed: int, count: int = 8, *, inverted: bool = False) -> Volume:
    """Bright squares on dark noise, or the other way round, and where they are."""
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 1, 16, 16, generator=random) * 0.3
    label = torch.zeros(count, 16, 16, dtype=torch.long)
    for index, (row, column) in enumerate(torch.randint(9, (count, 2), generator=random).tolist()):
        image[index, 0, row : row + 7, column : column + 7] += 0.6
        label[index, row : row + 7, column : column + 7] = 1
    return volume(1 - image if inverted else image, label)


def slices(*volumes: Volume, with_labels: bool = False) -> Slices:
    return Slices(volumes, TASK, with_labels=with_labels)


def method(name: str, **blocks: dict) -> Method:
    source = {
        "steps": 40,
        "batch": 8,
        "learning_rate": 1e-2,
        "warm_up": 0,
        "average": 5,
        "geometry": None,
        "appearance": None,
    }
    values = TINY.shared.model_dump(include={"compute", "segmenter"}) | {"source": source} | blocks
    return registry.build_method(name, parse_settings(name, values, "x"), TASK)


def stages(folder: Path) -> Stage:
    return fakes.stages(folder, 1)


def knowledge() -> Knowledge:
    """What a method knows that has drawn a network and learnt nothing."""
    torch.manual_seed(0)
    network = TINY.build_segmenter().eval().requires_grad_(False)
    return Knowledge(network, copy.deepcopy(network), None, ("a",))


def dice(network: nn.Module, scan: Volume) -> float:
    with torch.inference_mode():
        found = network(scan.image).argmax(dim=1)
    return (2 * (found & scan.label).sum() / (found.sum() + scan.label.sum())).item()


def test_volumes_come_without_the_slices_that_were_left_out_and_for_patches_in_their_own_size():
    images, label = torch.rand(3, 3, 1, 16, 16), torch.ones(3, 16, 16, dtype=torch.long)
    known = torch.tensor([[True, False, True], [False] * 3, [True] * 3])
    kept = slices(*map(volume, images, [label] * 3, known), with_labels=True).volumes()
    wanted = images[0][[0, 2]], images[2]
    assert all(torch.equal(a, b.half().float()) for a, b in zip(kept, wanted, strict=True))
    task = TASK.model_copy(update={"fit": "patch", "channels": 3})
    images = torch.rand(2, 3, 20, 18), torch.rand(1, 3, 16, 40)
    kept = Slices(map(volume, images), task, with_labels=False)
    assert all(torch.equal(a, b.half().float()) for a, b in zip(kept.volumes(), images, strict=True))


def test_histogram_brings_another_gamma_back(tmp_path):
    image = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(0)) ** 1.5
    scan, learner = volume(image, torch.zeros(6, 20, 20).long()), method("histogram", source={"steps": 1, "batch": 2})
    source = learner.learn_source("a", slices(scan, with_labels=True), None, stages(tmp_path))
    known = learner.adapt(source, "b", slices(scan), stages(tmp_path))
    changed = replace(scan, image=scan.image**2.2)
    for domain in ("b", "never met"):
        back = learner.standardise(known, changed, domain).image
        assert (back - scan.image).abs().mean() < 0.01 < (changed.image - scan.image).abs().mean()
        assert back.dtype == torch.float32 and back.shape == scan.image.shape
    assert learner.standardise(known, changed, "a") is changed
    assert known.segmenter is source.segmenter


def test_landmarks_are_percentiles_of_each_channel():
    image = torch.linspace(0, 1, 101).expand(1, 2, 1, 101) * torch.tensor([1.0, 0.5])[None, :, None, None]
    wanted = np.array([1, *range(10, 100, 10), 99]) / 100
    assert histogram.find_landmarks(image) == pytest.approx(np.stack([wanted, wanted / 2]), abs=1e-6)


STRAIGHT = ([0.1, 0.2, 0.3, 0.45, 0.5, 0.6, 1.0], [0.2, 0.4, 0.5], [0.1, 0.5, 0.6], [0, 0.1, 0.3, 0.55, 0.6, 0.7, 1.0])
SOME_EQUAL = ([0, 0.25, 0.5], [0, 0, 0, 0.5], [0, 0.1, 0.2, 0.9], [0.1, 0.5, 0.9])
ALL_EQUAL = ([0.0, 0.3, 0.9], [0.3, 0.3, 0.3], [0.2, 0.4, 0.6], [0.1, 0.4, 1.0])


@pytest.mark.parametrize("numbers", [STRAIGHT, SOME_EQUAL, ALL_EQUAL])
def test_intensities_go_straight_and_equal_landmarks_to_the_mean_of_theirs(numbers):
    values, own, wanted, mapped = map(np.array, numbers)
    assert histogram.map_intensities(values, own, wanted) == pytest.approx(mapped)


def test_adabn_keeps_statistics_of_each_targets_images(tmp_path):
    before, target = knowledge(), squares(1)
    learner = method("adabn", adabn={"batches": 4, "batch": 4})
    after = learner.adapt(before, "b", slices(target), stages(tmp_path))
    seen = before.segmenter.conv_0.conv_0.conv(target.image.half().float())
    name = "conv_0.conv_0.adn.N.running_mean"
    assert torch.allclose(after.domain_state["b"][name], seen.mean(dim=(0, 2, 3)), atol=1e-6)
    assert not torch.allclose(after.domain_state["b"][name], before.segmenter.state_dict()[name], atol=1e-3)
    for untouched in ("a", "never met"):
        assert_equal(before.segmenter.state_dict(), learner.network_for(after, untouched).state_dict())
    own = learner.network_for(after, "b")
    running = {
        name: value for name, value in own.state_dict().items() if name.endswith(("running_mean", "running_var"))
    }
    assert_equal(running, after.domain_state["b"])
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), before.segmenter.parameters(), strict=True))
    later = learner.adapt(after, "c", slices(squares(2, inverted=True)), stages(tmp_path))
    assert later.domain_state["b"] is after.domain_state["b"]
    assert later.domain_state.keys() == {"b", "c"}


def test_statistics_note_their_seconds_and_stop_when_asked(tmp_path):
    seconds, done, stopping = [], [], Stopping()
    listen = {"progress": lambda *steps: done.append(steps), "spent": seconds.append}
    opened = Stage(lambda part: Phase(part, tmp_path, 1, stopping, **listen))
    learner = method("adabn", adabn={"batches": 3, "batch": 4})
    learner.adapt(knowledge(), "b", slices(squares(1)), opened)
    assert done == [(1, 3), (2, 3), (3, 3)] and len(seconds) == 1 and seconds[0] > 0
    stopping.exit_code = 75
    with pytest.raises(Interrupted):
        learner.adapt(knowledge(), "b", slices(squares(1)), opened)


def test_tent_grows_sure_by_scales_and_shifts_and_has_the_statistics_that_go_with_them(tmp_path):
    before, target = knowledge(), squares(1, inverted=True)
    learner = method("tent", tent={"steps": 30, "batch": 8, "batches": 1, "learning_rate": 1e-2})
    plain = copy.deepcopy(before.segmenter).train()
    after = learner.adapt(before, "b", slices(target), stages(tmp_path)).segmenter
    learnt = {name for name, v in before.segmenter.named_parameters() if not torch.equal(v, after.get_parameter(name))}
    assert learnt and all(".adn.N." in name for name in learnt)
    with torch.no_grad():
        assert tent.entropy(after(target.image)) < tent.entropy(plain(target.image)) - 0.01
        seen = after.conv_0.conv_1.conv(after.conv_0.conv_0(target.image.half().float())).mean(dim=(0, 2, 3))
    # the first layer's running variance has the divisor n - 1, the batch's own has n
    assert torch.allclose(after.conv_0.conv_1.adn.N.running_mean, seen, atol=1e-3)


@pytest.mark.parametrize("restoration", [1.0, 0.01])
def test_cotta_returns_the_source_where_everything_is_restored(restoration, tmp_path):
    before = knowledge()
    learner = method("cotta", cotta={"steps": 3, "batch": 4, "restoration": restoration})
    after = learner.adapt(before, "b", slices(squares(1)), stages(tmp_path)).segmenter
    equal = all(torch.equal(after.get_parameter(name), v) for name, v in before.source_segmenter.named_parameters())
    assert equal == (restoration == 1)


def mean_teacher(start: nn.Module, student: nn.Module | None = None, task: Task = TASK, **changes: float):
    settings = MeanTeacherSettings(batch=4).model_copy(update=changes)
    return MeanTeacherObjective(student or copy.deepcopy(start), start, task, settings, TINY.compute)


def test_the_teacher_is_the_average_of_weights_and_statistics():
    start = knowledge().segmenter
    student = copy.deepcopy(start)
    learner = mean_teacher(start, student, momentum=0.75, restoration=0.0)
    learner.step(Batch(squares(1, 4).image, None), 0)
    for part in ("conv_0.conv_0.conv.weight", "conv_0.conv_0.adn.N.running_mean"):
        old, new, average = (network.state_dict()[part] for network in (start, student, learner.teacher))
        assert not torch.equal(old, new)
        assert torch.allclose(average, 0.75 * old + 0.25 * new)
    assert not learner.teacher.training and student.training


def test_without_orientation_the_teacher_predicts_alike_for_mirror_images():
    turning = TASK.model_copy(update={"any_orientation": True})
    learner, image = mean_teacher(knowledge().segmenter, task=turning, views=4), squares(1, 4).image
    predicted = learner._predict(image)
    assert torch.allclose(predicted.sum(dim=1), torch.ones(4, 16, 16))
    for axes in ((-1,), (-2,), (-2, -1)):
        assert torch.allclose(learner._predict(image.flip(axes)).flip(axes), predicted, atol=1e-5)


def test_with_orientation_further_views_change_the_appearance():
    start, image = knowledge().segmenter, squares(1, 4).image
    one, two = (mean_teacher(start, views=views)._predict(image) for views in (1, 2))
    with torch.no_grad():
        assert torch.equal(one, torch.softmax(start(image), dim=1))
    assert not torch.allclose(one, two, atol=1e-4)


def test_a_mixed_batch_has_equal_shares_with_their_labels_and_the_remainder_goes_round():
    met = {name: slices(volume(torch.full((5, 1, 16, 16), i / 4))) for i, name in enumerate("abc")}

    def shares(step: int, size: int) -> list[int]:
        image = dataset.mix(met, step, size, seed=0).image
        assert len(image) == size
        return [int((image[:, 0, 0, 0] == i / 4).sum()) for i in range(3)]

    assert [shares(step, 6) for step in range(2)] == [[2, 2, 2]] * 2
    assert [shares(step, 7) for step in range(3)] == [[3, 2, 2], [2, 3, 2], [2, 2, 3]]
    assert [shares(step, 2) for step in range(3)] == [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    assert dataset.mix(met, 0, 6, seed=0).label is None
    batch = dataset.mix({n: slices(squares(ord(n)), with_labels=True) for n in "ab"}, 3, 5, seed=0)
    assert torch.equal(batch.image[:, 0] > 0.45, batch.label == 1)


def test_supervised_learns_an_inverted_target_and_keeps_the_source(tmp_path):
    learner = method("supervised", supervised={"steps": 60})
    source, target = squares(0, 16), squares(1, 16, inverted=True)
    met = {"a": slices(source, with_labels=True), "b": slices(target, with_labels=True)}
    before = learner.learn_source("a", met["a"], None, stages(tmp_path / "0"))
    after = learner.adapt_jointly(before, met, stages(tmp_path / "1"))
    assert after.domains == ("a", "b")
    assert min(dice(known.segmenter, source) for known in (before, after)) > 0.8
    assert dice(after.segmenter, target) > dice(before.segmenter, target) + 0.3


def test_joint_reads_labels_of_the_source_and_images_of_every_target(tmp_path):
    learner, before, losses = method("joint", joint={"steps": 2, "batch": 4}), knowledge(), []
    met = {"a": slices(squares(0), with_labels=True), "b": slices(squares(1)), "c": slices(squares(2))}
    opened = Stage(lambda part: Phase(part, tmp_path, seed=1, log=lambda step, values: losses.append(dict(values))))
    after = learner.adapt_jointly(before, met, opened)
    assert after.domains == ("a", "b", "c")
    assert [*losses[0]] == ["segmentation", "consistency"]
    assert "an oracle adapts jointly" in told(TypeError, learner.adapt, before, "b", met["b"], opened)


class SquaresGenerator(Generator):
    """Draws what :func:`squares` does, with the labels; one weight scales the image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.domains = ("a",)

    def add_domain(self, name: str) -> None:
        self.domains = (*self.domains, name)

    def draw(self, count: int) -> Anatomy:
        return Anatomy(squares(int(torch.randint(1000, ())), count).image)

    def sample(self, anatomy: Anatomy, domains: torch.Tensor) -> torch.Tensor:
        assert not domains.any(), "only the source has been learnt"
        return anatomy.code * self.scale

    def labels(self, anatomy: Anatomy) -> torch.Tensor:
        organ = (anatomy.code > 0.45).float()
        return torch.cat([1 - organ, organ], dim=1)


def squares_replay() -> Replay:
    return Replay(SquaresGenerator(), knowledge().source_segmenter, 8, TINY.compute)


def test_an_images_own_amplitude_changes_nothing_and_a_black_image_takes_anothers():
    for size, beta in itertools.product(((16, 20), (17, 21)), (0.01, 0.2, 0.49)):
        image = torch.rand(3, 2, *size)
        exchanged = fda_replay.exchange_amplitude(image, fda_replay.low_amplitude(image, beta))
        assert torch.allclose(exchanged, image, atol=1e-5)
    grey = fda_replay.low_amplitude(torch.full((1, 1, 16, 16), 0.5), 0.1)[0]
    exchanged = fda_replay.exchange_amplitude(torch.zeros(1, 1, 16, 16), grey)
    assert torch.allclose(exchanged, torch.tensor(0.5), atol=1e-6), "a black image takes amplitudes without NaN"


def test_exchange_keeps_phases_and_high_frequencies_and_takes_low_amplitudes():
    image, other = torch.rand(2, 1, 20, 20), torch.rand(2, 1, 20, 20) ** 3
    wanted = fda_replay.low_amplitude(other, 0.1)
    assert wanted.shape == (2, 1, 5, 3)
    exchanged = fda_replay.exchange_amplitude(image, wanted)
    assert torch.allclose(fda_replay.low_amplitude(exchanged, 0.1), wanted, rtol=1e-4, atol=1e-4)
    before, after = torch.fft.fft2(image), torch.fft.fft2(exchanged)
    assert torch.allclose(before / before.abs(), after / after.abs(), atol=1e-3)
    low = torch.zeros(20, 20, dtype=torch.bool)
    low[torch.arange(-2, 3)[:, None], torch.arange(-2, 3)] = True
    assert torch.allclose(before[..., ~low], after[..., ~low], atol=1e-4)
    assert not torch.isclose(before[..., low].abs(), after[..., low].abs(), rtol=1e-3).all()


def test_a_style_is_the_mean_of_log_amplitudes():
    one = torch.rand(1, 2, 16, 16)
    assert torch.allclose(fda_replay.mean_amplitude([one, one], 0.2), fda_replay.low_amplitude(one, 0.2)[0], rtol=1e-4)
    flat = [torch.full((1, 1, 16, 16), value) for value in (0.25, 1.0)]
    assert fda_replay.mean_amplitude(flat, 0.01).item() == pytest.approx(math.sqrt(65 * 257) - 1, rel=1e-5)


def test_a_bank_shows_each_domain_in_its_style_and_the_source_unchanged():
    style = fda_replay.low_amplitude(torch.full((1, 1, 16, 16), 0.7), 0.01)[0]
    bank = StyleBank(squares_replay(), ("a", "b"), {"c": style})
    bank.add_domain("c")
    anatomy = bank.draw(6)
    image = bank.sample(anatomy, torch.tensor([0, 1, 2, 2, 0, 2]))
    assert torch.equal(image[[0, 1, 4]], anatomy.code[[0, 1, 4]])
    shifted = anatomy.code + 0.7 - anatomy.code.mean(dim=(1, 2, 3), keepdim=True)
    assert torch.allclose(image[[2, 3, 5]], shifted.clamp(0, 1)[[2, 3, 5]], atol=1e-5)
    assert image.min() >= 0 and image.max() <= 1


def test_fda_replay_keeps_one_style_a_target_and_the_generator_as_it_is(tmp_path):
    learner = method("fda_replay", fda_replay={"beta": 0.13, "batches": 2, "anatomies": 8, "replay": {"steps": 3}})
    before = replace(knowledge(), generator=SquaresGenerator())
    bright = replace(squares(1), image=squares(1).image + 0.1)
    first = learner.adapt(before, "b", slices(bright), stages(tmp_path / "b"))
    second = learner.adapt(first, "c", slices(squares(2, inverted=True)), stages(tmp_path / "c"))
    assert second.domain_state["b"] is first.domain_state["b"] and second.domain_state.keys() == {"b", "c"}
    style = first.domain_state["b"]["amplitude"]
    assert style.shape == (1, 5, 3) and style.dtype == torch.float32
    assert torch.allclose(style, fda_replay.mean_amplitude([bright.image.half().float()], 0.13), rtol=1e-4)
    assert second.generator is before.generator and second.generator.domains == ("a",)
    assert second.generator.scale.item() == 1 and second.generator.scale.grad is None
    assert not torch.equal(first.segmenter.conv_0.conv_0.conv.weight, before.segmenter.conv_0.conv_0.conv.weight)


def test_self_information_sums_to_normalised_entropy_of_0_where_sure_and_log_k_where_even():
    assert tent.entropy(torch.zeros(2, 3, 4, 4)).item() == pytest.approx(math.log(3))
    assert tent.entropy(torch.tensor([100.0, -100.0]).view(1, 2, 1, 1)).item() == pytest.approx(0, abs=1e-6)
    assert torch.allclose(advent.self_information(torch.zeros(1, 4, 2, 2)), torch.tensor(0.25))
    logits = torch.randn(2, 3, 4, 4)
    total = advent.self_information(logits).sum(dim=1).mean().item()
    assert total == pytest.approx(tent.entropy(logits).item() / math.log(3), rel=1e-5)
    sure = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    maps = advent.self_information(sure)
    maps.sum().backward()
    assert torch.equal(maps, torch.zeros_like(maps)) and torch.isfinite(sure.grad).all()


def adversary(**changes: float) -> AdversarialObjective:
    settings = AdventSettings(batch=4, widths=(4, 8), anatomies=8).model_copy(update=changes)
    return AdversarialObjective(copy.deepcopy(knowledge().segmenter), squares_replay(), 2, settings, TINY.compute)


def test_the_discriminator_learns_to_tell_and_the_segmenter_to_deceive():
    assert advent.build_discriminator(2, (4, 8))(torch.rand(3, 2, 16, 24)).shape == (3, 1, 2, 3)
    maps, others = torch.full((4, 2, 16, 16), 0.1), torch.full((4, 2, 16, 16), 0.4)
    learner = adversary(discriminator_rate=1e-2)
    told = [learner._train_discriminator(maps, others).item() for _ in range(30)]
    assert told[0] == pytest.approx(math.log(2), abs=0.2) and told[-1] < 0.1
    with torch.no_grad():
        assert learner._judge(maps, "source") < 0.2 < 1 < learner._judge(others, "source")
    before = [weight.clone() for weight in learner._discriminator.parameters()]
    replayed = learner.segmenter(squares(1, 4).image)
    learner._train_segmenter(replayed.square().mean(), advent.self_information(replayed))
    assert all(torch.equal(a, b) for a, b in zip(before, learner._discriminator.parameters(), strict=True))
    assert all(weight.requires_grad for weight in learner._discriminator.parameters())


def test_the_adversarial_weight_decides_how_far_the_target_counts():
    target = Batch(squares(3, 4, inverted=True).image, None)

    def learnt(weight: float) -> torch.Tensor:
        torch.manual_seed(0)
        learner = adversary(adversarial=weight)
        losses = learner.step(target, 0)
        assert [*losses] == ["segmentation", "adversarial", "discriminator"]
        assert not any(loss.requires_grad for loss in losses.values())
        return learner.segmenter.conv_0.conv_0.conv.weight.detach()

    assert torch.equal(learnt(0.0), learnt(0.0))
    assert not torch.equal(learnt(0.0), learnt(10.0))


def test_advent_learns_replayed_labels_and_forgets_its_discriminator(tmp_path):
    learner = method("advent", advent={"steps": 40, "batch": 8, "learning_rate": 1e-2, "widths": [4], "anatomies": 32})
    before = replace(knowledge(), generator=SquaresGenerator())
    after = learner.adapt(before, "b", slices(squares(1)), stages(tmp_path))
    assert dice(after.segmenter, squares(5)) > 0.8
    assert after.generator is before.generator and after.domain_state == {}
    after.save(tmp_path / "kept")
    kept = {"knowledge", "segmenter", "teacher", "generator", "statistics"}
    assert {path.stem for path in (tmp_path / "kept").iterdir()} == kept
    assert after.segmenter.state_dict().keys() == before.segmenter.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "blocks", "size", "told"),
    [
        ("advent", {"advent": {"widths": [4] * 4}}, 16, "advent.widths: 5 convolutions are too many for 16 x 16"),
        ("fda_replay", {"fda_replay": {"beta": 0.2}}, 512, "fda_replay.beta: a style would take 84460 bytes, more"),
        ("garda", {"segmenter": {"widths": [64, 64, 4, 4, 4, 4]}}, 16, "segmenter.widths: a domain's adapter would"),
    ],
)
def test_what_a_domain_or_an_image_has_no_room_for_is_refused(name, blocks, size, told):
    fakes.method(name).check()
    settings = method(name, **blocks).shared
    with pytest.raises(ConfigError, match=told):
        registry.build_method(name, settings, TASK.model_copy(update={"size": (size, size)})).check()
