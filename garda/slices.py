"""One domain's 2-D slices as one compact array, and the batches drawn from it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from garda.seeds import derive_seed
from garda.sequence import Task
from garda.volumes import Volume, grid_for

IN_MEMORY = 2**30  # bytes; a larger domain is kept in a memory-mapped file


@dataclass(frozen=True)
class Batch:
    """A batch of network inputs.

    Attributes:
        image: (B, C, H, W) float32 in [0, 1].
        label: (B, H, W) int64 class indices, or None for an unlabelled domain.
    """

    image: Tensor
    label: Tensor | None


class Slices:
    """The training slices of one domain on the network's grid.

    Images are kept as float16 (a step of at most 1/2048 in [0, 1]) and labels as uint8, each in one flat array. Where
    ``task.fit`` is ``patch``, slices keep their own size and a batch holds random patches of ``task.size``.
    """

    def __init__(
        self, volumes: Iterable[Volume], task: Task, *, with_labels: bool, private_folder: Path | None = None
    ) -> None:
        """Bring every volume to the network's grid.

        Args:
            volumes: read one after another; only their slices are kept.
            task: gives size, channels and classes.
            with_labels: True for a labelled source; slices whose label is missing are then left out.
            private_folder: where an array above 1 GiB is memory-mapped (the file has no name and goes with the
                process); None for the system's temporary folder.
        """
        self.task = task
        self.with_labels = with_labels
        self._shapes: list[tuple[int, int]] = []
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for volume in volumes:
            self._take(volume, images, labels)
        self._images = _flat(images, np.float16, private_folder)
        self._labels = _flat(labels, np.uint8, private_folder) if with_labels else None
        self._offsets = np.cumsum([0, *(height * width for height, width in self._shapes)])

    def __len__(self) -> int:
        """The number of slices."""
        return len(self._shapes)

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """``size`` slices or patches for one step; a pure function of step, size and seed.

        Every slice comes once before any comes again.
        """
        random = np.random.default_rng(derive_seed(seed, "batch", step))
        drawn = [self._window(self._nth(step * size + i, seed), random) for i in range(size)]
        image = torch.from_numpy(np.stack([self._cut(self._images, window) for window in drawn])).float()
        if self._labels is None:
            return Batch(image, None)
        label = torch.from_numpy(np.stack([self._cut(self._labels, window)[0] for window in drawn])).long()
        return Batch(image, label)

    def _take(self, volume: Volume, images: list[np.ndarray], labels: list[np.ndarray]) -> None:
        grid = grid_for(volume, self.task)
        image = grid.to_network(volume.image).half().numpy()
        kept = np.arange(len(image))
        if self.with_labels and volume.label is not None:
            label = grid.label_to_network(volume.label, len(self.task.classes)).to(torch.uint8).numpy()
            kept = kept[volume.labelled.numpy()] if volume.labelled is not None else kept
            labels.extend(label[index] for index in kept)
        images.extend(image[index] for index in kept)
        self._shapes.extend([image.shape[-2:]] * len(kept))

    def _nth(self, position: int, seed: int) -> int:
        """The slice at one position of the endless, epoch-wise shuffled order."""
        epoch, place = divmod(position, len(self))
        return int(np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(len(self))[place])

    def _window(self, index: int, random: np.random.Generator) -> tuple[int, slice, slice]:
        """A slice's index, and the rows and columns of a random window of ``task.size`` in it."""
        corners = (int(random.integers(side - size + 1)) for side, size in self._sides(index))
        rows, columns = (slice(corner, corner + size) for corner, size in zip(corners, self.task.size, strict=True))
        return index, rows, columns

    def _sides(self, index: int) -> zip[tuple[int, int]]:
        return zip(self._shapes[index], self.task.size, strict=True)

    def _cut(self, flat: np.ndarray, window: tuple[int, slice, slice]) -> np.ndarray:
        """(channels, H, W) of one window out of a flat array; labels have one channel."""
        index, rows, columns = window
        channels = len(flat) // self._offsets[-1]
        start, stop = channels * self._offsets[index], channels * self._offsets[index + 1]
        return flat[start:stop].reshape(channels, *self._shapes[index])[:, rows, columns]


def _flat(arrays: list[np.ndarray], dtype: type[np.generic], folder: Path | None) -> np.ndarray:
    """All arrays one after another, memory-mapped above ``IN_MEMORY``; the list is emptied on the way."""
    length = sum(math.prod(array.shape) for array in arrays)
    if length * np.dtype(dtype).itemsize <= IN_MEMORY:
        flat = np.empty(length, dtype)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:  # nameless; the map alone keeps its bytes
            flat = np.memmap(file, dtype, mode="w+", shape=(length,))
    position = 0
    while arrays:
        array = arrays.pop(0)
        flat[position : position + array.size] = array.reshape(-1)
        position += array.size
    return flat
