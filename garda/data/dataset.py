"""One domain's 2-D slices as one compact array, and the batches drawn from it."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from garda.core.seeds import derive_seed
from garda.data.task import Task
from garda.data.volume import Volume, grid_for

QUARTER = 4  # of scans, or slices, one is held out where what has been learnt is to be judged
IN_MEMORY = 2**29  # bytes; a larger domain is kept in a memory-mapped file


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
            volumes: read one after another; only their slices are kept, above 512 MiB not in memory.
            task: gives size, channels and classes.
            with_labels: True for a labelled source; slices whose label is missing are then left out.
            private_folder: where an array above 512 MiB is memory-mapped (the file has no name and goes with the
                process); None for the system's temporary folder.

        Raises:
            OSError: no space is left there.
        """
        self.task = task
        self.with_labels = with_labels
        self._shapes: list[tuple[int, int]] = []
        self._depths: list[int] = []
        with ExitStack() as files:
            images, labels = _Growing(np.float16, private_folder, files), _Growing(np.uint8, private_folder, files)
            for volume in volumes:
                self._take(volume, images, labels)
            self._images = images.array()
            self._labels = labels.array() if with_labels else None
        self._offsets = np.cumsum([0, *(height * width for height, width in self._shapes)])
        self._used = np.arange(len(self._shapes))

    def __len__(self) -> int:
        """The number of slices."""
        return len(self._used)

    def hold_out(self) -> tuple[Slices, Slices]:
        """The same slices in two parts: what may be learnt from, and every fourth scan; of fewer than four, a quarter.

        The quarter is the middle of each scan; what is too little to be parted stands in both.
        """
        ends = np.cumsum(self._depths)
        scan = np.searchsorted(ends, self._used, side="right")
        if len(self._depths) >= QUARTER:
            apart = scan % QUARTER == QUARTER // 2
        else:
            depths = np.array(self._depths)[scan]
            place = self._used - (ends[scan] - depths)
            apart = np.abs(2 * place + 1 - depths) < np.maximum(depths / QUARTER, 1)
        return self._select(~apart), self._select(apart)

    def _select(self, chosen: np.ndarray) -> Slices:
        part = copy.copy(self)
        part._used = self._used[chosen] if chosen.any() else self._used
        return part

    @property
    def nbytes(self) -> int:
        """Bytes of all images and labels."""
        return self._images.nbytes + (0 if self._labels is None else self._labels.nbytes)

    def batch(self, step: int, size: int, seed: int, scale: float = 1.0) -> Batch:
        """``size`` slices or patches for one step; a pure function of all arguments.

        Every slice comes once before any comes again.

        Args:
            step: the step's number, from 0.
            size: B.
            seed: decides the order of the slices, and where patches lie.
            scale: of the sides of a patch, by ``task.size``; none is larger than the smallest slice.

        Returns:
            (B, C, h, w) images of ``task.size`` times ``scale``, and (B, h, w) labels where the domain is labelled.
        """
        smallest = (min(sides) for sides in zip(*self._shapes, strict=True))
        sides = [min(round(side * scale), most) for side, most in zip(self.task.size, smallest, strict=True)]
        random = np.random.default_rng(derive_seed(seed, "batch", step))
        epochs = (divmod(step * size + i, len(self)) for i in range(size))
        indices = [int(self._used[_order(len(self), seed, epoch)[place]]) for epoch, place in epochs]
        drawn = [self._window(index, sides, random) for index in indices]
        image = torch.from_numpy(np.stack([self._cut(self._images, window) for window in drawn]).astype(np.float32))
        if self._labels is None:
            return Batch(image, None)
        label = torch.from_numpy(np.stack([self._cut(self._labels, window)[0] for window in drawn]).astype(np.int64))
        return Batch(image, label)

    def volumes(self) -> Iterator[Tensor]:
        """(D, C, H, W) float32 images in [0, 1], a volume after the other; slices that were left out are not there."""
        for indices in np.split(self._used, np.searchsorted(self._used, np.cumsum(self._depths)[:-1])):
            if whole := [self._cut(self._images, (i, slice(None), slice(None))) for i in indices]:
                yield torch.from_numpy(np.stack(whole)).float()

    def _take(self, volume: Volume, images: _Growing, labels: _Growing) -> None:
        grid = grid_for(volume, self.task)
        image = grid.to_network(volume.image).half().numpy()
        kept = np.ones(len(image), dtype=bool)
        if self.with_labels and volume.label is not None:
            label = grid.label_to_network(volume.label, len(self.task.classes)).to(torch.uint8).numpy()
            kept = volume.labelled.numpy() if volume.labelled is not None else kept
            labels.append(label[kept])
        images.append(image[kept])
        self._depths.append(int(kept.sum()))
        self._shapes.extend([image.shape[-2:]] * self._depths[-1])

    def _window(self, index: int, sides: Sequence[int], random: np.random.Generator) -> tuple[int, slice, slice]:
        """A slice's index, and the rows and columns of a random window in it."""
        lengths = zip(self._shapes[index], sides, strict=True)
        corners = ((int(random.integers(length - side + 1)), side) for length, side in lengths)
        rows, columns = (slice(corner, corner + size) for corner, size in corners)
        return index, rows, columns

    def _cut(self, flat: np.ndarray, window: tuple[int, slice, slice]) -> np.ndarray:
        """(channels, H, W) of one window out of a flat array; labels have one channel."""
        index, rows, columns = window
        channels = len(flat) // self._offsets[-1]
        start, stop = channels * self._offsets[index], channels * self._offsets[index + 1]
        return flat[start:stop].reshape(channels, *self._shapes[index])[:, rows, columns]


@lru_cache(maxsize=2)  # a batch spans two epochs at most, unless it is larger than the domain
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffled order of one epoch's ``count`` slices."""
    return np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(count)


class _Growing:
    """A flat array to which arrays are added: in memory up to ``IN_MEMORY`` bytes, then in a nameless file."""

    def __init__(self, dtype: type[np.generic], folder: Path | None, files: ExitStack) -> None:
        self._dtype, self._folder, self._files = dtype, folder, files
        self._bytes: BinaryIO = io.BytesIO()

    def append(self, array: np.ndarray) -> None:
        self._bytes.write(np.ascontiguousarray(array, self._dtype).data)
        if isinstance(self._bytes, io.BytesIO) and self._bytes.tell() > IN_MEMORY:
            file = self._files.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
            file.write(self._bytes.getbuffer())
            self._bytes = file

    def array(self) -> np.ndarray:
        """All values one after another, without a copy; the map outlives its file."""
        if isinstance(self._bytes, io.BytesIO):
            return np.frombuffer(self._bytes.getbuffer(), self._dtype)
        self._bytes.flush()
        return np.memmap(self._bytes, self._dtype, mode="r")


def mix(slices: Mapping[str, Slices], step: int, size: int, seed: int) -> Batch:
    """``size`` slices of several domains in equal parts, the remainder going round; a pure function as ``batch`` is.

    Args:
        slices: by domain's name; all labelled, or the batch has no labels.
        step: the step's number.
        size: of the batch.
        seed: of the stage.
    """
    turn = step % len(slices)
    names = [*slices][turn:] + [*slices][:turn]
    shares = {name: len(range(place, size, len(names))) for place, name in enumerate(names[:size])}
    parts = [slices[name].batch(step, share, derive_seed(seed, name)) for name, share in shares.items()]
    labels = [part.label for part in parts if part.label is not None]
    image = torch.cat([part.image for part in parts])
    return Batch(image, torch.cat(labels) if len(labels) == len(parts) else None)
