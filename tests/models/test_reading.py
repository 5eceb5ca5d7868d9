"""How a reading is chosen without labels, what an ensemble answers, and when the source has been learnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from garda.data import holdout
from garda.data.augment import GeometrySettings
from garda.data.dataset import Batch, Slices
from garda.data.manifest import Case
from garda.data.randomise import RandomisationSettings
from garda.data.sequence import Domain
from garda.data.task import Task
from garda.data.volume import Frame, Volume
from garda.models import ensemble, reading, stopping
from garda.models.reading import ChoiceSettings
from garda.models.stopping import HeldOut, StoppingSettings
from garda.training.device import Compute, ComputeSettings

TASK = Task(name="t", classes=("background", "organ"), size=(32, 32))
COMPUTE = Compute(ComputeSettings(accelerator="cpu", precision="32"))
SETTINGS = ChoiceSettings(zooms=())


class Threshold(nn.Module):
    """Organ where the image is brighter than a grey."""

    def __init__(self, grey: float) -> None:
        super().__init__()
        self.grey = grey

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([self.grey - image, image - self.grey], dim=1) * 50


class Place(nn.Module):
    """Organ in the upper half, whatever is seen."""

    def forward(self, image: Tensor) -> Tensor:
        answer = torch.zeros(len(image), 2, *image.shape[-2:])
        answer[:, 1, : image.shape[-2] // 2] = 20
        return answer


def discs(count: int = 8) -> Batch:
    """Bright discs somewhere on dark."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    centres = torch.rand(2, count, 1, 1, generator=torch.Generator().manual_seed(0)) * 12 + 10
    label = (torch.hypot(y - centres[0], x - centres[1]) < 6).long()
    return Batch(label[:, None] * 0.6 + 0.2, label)


def compare(**experts: nn.Module) -> dict[str, reading.Reading]:
    torch.manual_seed(0)
    shares = reading.plausible_shares(discs().label, 2)
    task = TASK.model_copy(update={"any_orientation": True})  # views are turned by quarters too
    found = reading.compare(experts, discs().image, 1.0, shares, SETTINGS, task, COMPUTE)
    return {each.name: each for each in found}


def test_a_network_that_sees_agrees_with_itself_and_one_that_does_not_less():
    found = compare(sees=Threshold(0.5), place=Place())
    assert found["sees"].agreement > 0.95 > 0.7 > found["place"].agreement
    assert found["sees"].plausible and not found["place"].plausible
    assert reading.choose([*found.values()], SETTINGS).name == "sees"


def test_nonsense_everywhere_agrees_and_is_not_plausible():
    found = compare(sees=Threshold(0.5), everything=Threshold(0.1), nothing=Threshold(2.0))
    assert found["everything"].agreement > found["sees"].agreement
    assert [found[name].plausible for name in ("sees", "everything", "nothing")] == [True, False, False]
    assert found["nothing"].agreement == 0
    assert reading.choose([*found.values()], SETTINGS).name == "sees"


def test_every_other_view_moves_whole_pixels():
    image = torch.rand(6, 1, 16, 32)
    torch.manual_seed(0)
    moved = reading.augment.warp(image, reading.draw_view(1, image, any_orientation=False))
    assert not torch.equal(moved, image)
    assert torch.isin(moved.mul(1e4).round(), image.mul(1e4).round()).all(), "no value is new"
    turned = reading.augment.warp(image, reading.draw_view(2, image, any_orientation=False))
    assert not torch.isin(turned.mul(1e4).round(), image.mul(1e4).round()).all()


def test_consensus_is_that_of_the_two_that_say_most_alike():
    same, image = Threshold(0.5), discs().image
    assert reading.consensus({"one": same}, image, COMPUTE) == 1
    assert reading.consensus({"one": same, "two": Threshold(0.4), "three": Place()}, image, COMPUTE) == 1
    assert 0 < reading.consensus({"one": same, "three": Place()}, image, COMPUTE) < 0.7


def test_views_are_turned_back():
    motion = reading.augment.draw_affine(4, GeometrySettings(probability=1, shift=0.1), True, torch.device("cpu"))
    whole = torch.eye(3).repeat(4, 1, 1)
    whole[:, :2] = motion
    back = torch.eye(3).repeat(4, 1, 1)
    back[:, :2] = reading.invert(motion)
    torch.testing.assert_close(whole @ back, torch.eye(3).repeat(4, 1, 1), atol=1e-5, rtol=0)


def test_several_and_zoomed_must_win_by_a_margin():
    one = reading.Reading(("plain",), 1.0, 0.9, True)
    for other, margin in ((replace(one, experts=("plain", "curves")), "several"), (replace(one, zoom=2.0), "zoomed")):
        much = getattr(SETTINGS, margin)
        assert reading.choose([one, replace(other, agreement=0.9 + much * 0.9)], SETTINGS) is one
        assert reading.choose([one, replace(other, agreement=0.9 + much * 1.1)], SETTINGS) is not one


def test_a_zoomed_network_answers_for_the_image_as_it_is():
    network = ensemble.Zoomed(Threshold(0.5), 2.0)
    image = discs().image
    assert network(image).shape == (8, 2, 32, 32)
    assert ((network(image).argmax(dim=1) == discs().label).float().mean()) > 0.97


def test_labels_choose_at_the_source():
    batch = discs()
    shares = torch.stack([batch.label == 0, batch.label == 1], dim=1).float()
    good, bad, _ = reading.score({"a": Threshold(0.5), "b": Place()}, batch.image, shares, COMPUTE)
    assert good.agreement == 1 > bad.agreement


RULE = StoppingSettings(every=10, least=20, patience=20, rise=0.01)


@pytest.mark.parametrize(
    ("dice", "stops"),
    [([0.5], False), ([0.5, 0.5], False), ([0.5, 0.6, 0.7, 0.8], False), ([0.5, 0.8, 0.8, 0.805], True)],
)
def test_training_ends_when_dice_has_stopped_rising(dice, stops):
    measured = [(10 * (place + 1), value) for place, value in enumerate(dice)]
    assert stopping.has_stopped(measured, RULE) == stops


class Labelled(Slices):
    def __init__(self) -> None: ...

    def __len__(self) -> int:
        return 8

    def batch(self, step: int, size: int, seed: int, scale: float = 1.0) -> Batch:
        return discs(size)


def test_held_out_slices_are_looked_at_when_it_is_time_under_every_kind():
    held_out = HeldOut(Labelled(), 2, RandomisationSettings(), RULE, 0, COMPUTE)
    for step in range(1, 31):
        held_out.look(Threshold(0.5), step)
    assert [step for step, _ in held_out.measured] == [10, 20, 30]
    assert held_out.measured[0][1] == held_out.measured[1][1] < 1  # curves and contrasts that a threshold cannot read
    plain = HeldOut(Labelled(), 2, None, RULE, 0, COMPUTE)
    plain.look(Threshold(0.5), 10)
    assert plain.measured == [(10, 1.0)]
    again = HeldOut(Labelled(), 2, None, RULE, 0, COMPUTE)
    again.load_state_dict(held_out.state_dict())
    assert again.measured == held_out.measured and again.stopped


def case(patient: int, split: str) -> Case:
    return Case(f"c{patient}", f"p{patient}", split, f"{patient}.nii", (f"{patient}_seg.nii",), (), "x.csv, line 2")


def test_held_out_are_val_cases_or_a_tenth_of_the_patients():
    train = tuple(case(number, "train") for number in range(25))
    kept, held_out = holdout.split_cases(Domain("a", 0, (*train, case(30, "val"))))
    assert kept == train and [each.patient for each in held_out] == ["p30"]
    kept, held_out = holdout.split_cases(Domain("a", 0, train))
    assert len(kept) == 23 and [each.patient for each in held_out] == ["p5", "p15"]
    assert holdout.split_cases(Domain("a", 0, train[:9])) == (train[:9], ())


def scan(slices: int, unlabelled: int = 0) -> Volume:
    label = torch.arange(slices + unlabelled).view(-1, 1, 1).repeat(1, 4, 4)
    labelled = torch.arange(slices + unlabelled) >= unlabelled
    return Volume("a", torch.rand(slices + unlabelled, 1, 4, 4), label, labelled, np.eye(4), None, Frame())


def test_of_few_patients_the_middle_tenth_of_labelled_slices_is_held_out():
    kept, held_out = holdout.split_slices([scan(20, unlabelled=3), scan(4)])
    assert [len(each.image) for each in kept] == [18, 3] and [len(each.image) for each in held_out] == [2, 1]
    assert held_out[0].label[:, 0, 0].tolist() == [12, 13]
    kept, held_out = holdout.split_slices([scan(9)])
    assert (len(kept[0].image), held_out) == (9, [])
