import pytest
import torch

from garda.data.preprocess import Grid
from garda.data.task import Task

TASK = Task(name="t", classes=("background", "a", "b"), size=(16, 32))
COARSE = TASK.model_copy(update={"spacing_mm": (1.0, 1.0)})


def soft(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


@pytest.mark.parametrize("shape", [(16, 32), (17, 33), (9, 41), (40, 11)])
@pytest.mark.parametrize("fit", ["crop", "patch"])
def test_without_resampling_what_is_kept_comes_back_bit_for_bit(shape: tuple[int, int], fit: str):
    task = TASK.model_copy(update={"fit": fit})
    grid = Grid.fit(shape, None, task)
    image = soft(2, 3, *shape)
    small = grid.to_network(image)
    again = grid.to_volume(small)
    assert again.shape == image.shape
    ones = Grid.fit(shape, None, task).to_volume(grid.to_network(torch.ones(1, 2, *shape)))
    kept = ones[0, 1] == 1
    assert torch.equal(again[..., kept], image[..., kept])
    left_out = again[..., ~kept]
    assert (left_out[:, 0] == 1).all() and (left_out[:, 1:] == 0).all()
    assert fit == "crop" or kept.all()
    label = image.argmax(dim=1)
    assert torch.equal(grid.label_to_network(label, 3)[small.sum(dim=1) > 0], small.argmax(dim=1)[small.sum(dim=1) > 0])


def test_patches_are_padded_to_the_size_and_never_cropped():
    task = COARSE.model_copy(update={"fit": "patch"})
    assert Grid.fit((10, 50), None, task).size == (16, 50)
    assert Grid.fit((10, 50), (2.0, 0.5), task) == Grid(shape=(10, 50), resampled=(20, 25), size=(20, 32))


def test_resampling_keeps_the_physical_extent():
    """A ramp over the field of view in mm is the same ramp on both grids, half pixels included."""
    grid = Grid.fit((40, 30), (0.4, 1.6), COARSE.model_copy(update={"fit": "patch", "size": (16, 16)}))
    assert grid.resampled == (16, 48)
    rows = (torch.arange(40) + 0.5) * 0.4
    columns = (torch.arange(30) + 0.5) * 1.6
    image = torch.stack([rows[:, None].expand(40, 30), columns[None].expand(40, 30)])[None]
    small = grid.to_network(image)[0]
    inner_rows, inner_columns = slice(2, -2), slice(2, -2)
    torch.testing.assert_close(small[0, inner_rows, 24], (torch.arange(16) + 0.5)[inner_rows], atol=0.01, rtol=0)
    torch.testing.assert_close(small[1, 8, inner_columns], (torch.arange(48) + 0.5)[inner_columns], atol=0.01, rtol=0)


def test_a_class_keeps_its_place_and_size_through_the_network_grid():
    grid = Grid.fit((64, 64), (0.5, 0.5), COARSE.model_copy(update={"size": (32, 32)}))
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, 20:44, 12:30], label[:, 28:36, 16:24] = 1, 2
    small = grid.label_to_network(label, 3)
    assert [int((small == index).sum()) * 4 for index in (1, 2)] == [int((label == index).sum()) for index in (1, 2)]
    again = grid.to_volume(torch.nn.functional.one_hot(small, 3).movedim(-1, 1).float())
    torch.testing.assert_close(again.sum(dim=1), torch.ones(1, 64, 64))
    assert float((again.argmax(dim=1) == label).float().mean()) > 0.995


def test_a_tiny_slice_keeps_a_pixel():
    assert Grid.fit((1, 3), (0.1, 0.1), COARSE).resampled == (1, 1)
