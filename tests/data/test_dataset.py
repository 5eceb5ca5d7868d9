import errno
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from garda.data import dataset
from garda.data.dataset import Slices
from garda.data.task import Task
from garda.data.volume import Frame, Volume

CROP = Task(name="t", classes=("background", "organ"), size=(16, 16))
PATCH = CROP.model_copy(update={"fit": "patch"})


def volume(depth: int, height: int, width: int, labelled: list[bool] | None = None, start: float = 0.0) -> Volume:
    """Slice i of the volume is filled with (start + i) / 100 and labelled 1 where the row is even."""
    values = (torch.arange(depth) + start) / 100
    image = values[:, None, None, None].expand(-1, 1, height, width).clone()
    label = torch.zeros(depth, height, width, dtype=torch.long)
    label[:, ::2] = 1
    known = None if labelled is None else torch.tensor(labelled)
    return Volume("c", image, label, known, np.eye(4), None, Frame())


def seen(slices: Slices, steps: int, size: int) -> list[int]:
    return [round(image.max().item() * 100) for step in range(steps) for image in slices.batch(step, size, 0).image]


def test_every_slice_comes_once_before_any_comes_again():
    slices = Slices([volume(3, 16, 16), volume(4, 20, 18, start=3)], CROP, with_labels=False)
    assert len(slices) == 7 and slices.batch(0, 2, 0).label is None
    order = seen(slices, 7, 2)
    assert sorted(order[:7]) == sorted(order[7:]) == list(range(7))
    assert order[:7] != order[7:]


@pytest.mark.parametrize(
    ("depths", "apart"),
    [([2, 1, 1, 3, 2], [3]), ([8], [3, 4]), ([2, 8], [5, 6]), ([1], [0])],
    ids=["every fourth scan", "the middle of one", "the middle of each", "one slice stands in both"],
)
def test_a_quarter_is_held_out_to_judge_by(depths, apart):
    starts = np.cumsum([0, *depths])
    slices = Slices(
        [volume(depth, 16, 16, start=int(start)) for depth, start in zip(depths, starts, strict=False)],
        CROP,
        with_labels=False,
    )
    learnt, judged = slices.hold_out()
    assert sorted(seen(judged, len(judged), 1)) == apart
    assert sorted(seen(learnt, len(learnt), 1)) == sorted(set(range(sum(depths))) - set(apart)) or sum(depths) == 1
    assert sum(len(part) for part in judged.volumes()) == len(apart)


def test_a_batch_is_a_pure_function_of_step_size_and_seed():
    slices = Slices([volume(5, 40, 40)], PATCH, with_labels=True)
    first, again = slices.batch(3, 4, 1), slices.batch(3, 4, 1)
    assert torch.equal(first.image, again.image) and torch.equal(first.label, again.label)
    assert not torch.equal(first.label, slices.batch(4, 4, 1).label)


def test_the_order_of_an_epoch_is_drawn_once():
    dataset._order.cache_clear()
    seen(Slices([volume(5, 16, 16)], CROP, with_labels=False), 4, 2)
    assert dataset._order.cache_info().misses == 2


def test_another_domain_asked_in_between_changes_no_order():
    small, large = (Slices([volume(depth, 16, 16)], CROP, with_labels=False) for depth in (3, 9))
    alone = [seen(small, 3, 2), seen(large, 3, 2)]
    in_turn: list[list[int]] = [[], []]
    for step in range(3):
        for order, domain in zip(in_turn, (small, large), strict=True):
            order += [round(image.max().item() * 100) for image in domain.batch(step, 2, 0).image]
    assert alone == in_turn


def test_slices_without_a_label_are_left_out_of_a_labelled_source_alone():
    half = [True, False, True, False]
    assert sorted(seen(Slices([volume(4, 16, 16, half)], CROP, with_labels=True), 1, 2)) == [0, 2]
    assert len(Slices([volume(4, 16, 16, half)], CROP, with_labels=False)) == 4
    assert len(Slices([volume(2, 16, 16, [False, False])], CROP, with_labels=True)) == 0
    assert len(Slices([], CROP, with_labels=False)) == 0


def test_image_and_label_are_cut_at_the_same_place():
    rows = torch.arange(40) / 100
    image = rows[None, None, :, None].expand(1, 1, 40, 40).clone()
    label = (torch.arange(40) % 2)[None, :, None].expand(1, 40, 40).clone()
    slices = Slices([Volume("c", image, label, None, np.eye(4), None, Frame())], PATCH, with_labels=True)
    batch = slices.batch(0, 8, 0)
    assert batch.image.shape == (8, 1, 16, 16) and batch.label.shape == (8, 16, 16)
    row = (batch.image[:, 0] * 100).round().long()
    assert torch.equal(row % 2, batch.label)
    assert len({int(first) for first in row[:, 0, 0]}) > 1


@pytest.mark.parametrize("task", [CROP, PATCH])
def test_large_domains_are_memory_mapped_and_hold_the_same(task, monkeypatch, tmp_path):
    volumes = [volume(3, 20, 24), volume(2, 16, 30, start=3)]
    plain = Slices(volumes, task, with_labels=True).batch(0, 5, 0)
    monkeypatch.setattr(dataset, "IN_MEMORY", 16)
    mapped = Slices(volumes, task, with_labels=True, private_folder=tmp_path)
    assert isinstance(mapped._images, np.memmap)
    assert torch.equal(mapped.batch(0, 5, 0).image, plain.image)
    assert torch.equal(mapped.batch(0, 5, 0).label, plain.label)
    assert list(tmp_path.iterdir()) == []


def test_a_large_domain_takes_the_memory_of_one_volume(monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "IN_MEMORY", 2**16)
    task = CROP.model_copy(update={"size": (64, 64)})

    def peak(count: int) -> int:
        tracemalloc.start()
        Slices((volume(16, 64, 64) for _ in range(count)), task, with_labels=True, private_folder=tmp_path)
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return memory

    peak(1)
    assert peak(40) < peak(1) + 2**18  # 40 volumes are 7.8 MB


def test_no_space_for_a_large_domain_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "IN_MEMORY", 16)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Path("/dev/full").open("r+b"))  # noqa: SIM115
    with pytest.raises(OSError) as caught:
        Slices([volume(3, 16, 16)], CROP, with_labels=False, private_folder=tmp_path)
    assert caught.value.errno == errno.ENOSPC
