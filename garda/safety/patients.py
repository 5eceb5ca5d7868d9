"""Patients' slices, read a few at a time, and means over a patient's slices."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Patients:
    """Members, then outsiders; read one after another, as often as asked.

    Attributes:
        members: (D, C, H, W) in [0, 1] of each training patient.
        outsiders: the same of patients never used in training.
    """

    members: Sequence[Tensor]
    outsiders: Sequence[Tensor]

    def __len__(self) -> int:
        """The number of patients."""
        return len(self.members) + len(self.outsiders)

    def __iter__(self) -> Iterator[Tensor]:
        """A patient's slices after the other's.

        Raises:
            ValueError: a patient has no slice, or another shape.
        """
        for volume in itertools.chain(self.members, self.outsiders):
            if volume.dim() != 4 or len(volume) == 0:
                raise ValueError(f"a patient is (D, C, H, W) with at least one slice, got {tuple(volume.shape)}")
            yield volume


def patient_means(values: Tensor, owners: Tensor, patients: int) -> Array:
    """(P,) means, in double precision, of (S,) values of slices whose patients are ``owners``, (S,) int64.

    >>> patient_means(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist()
    [1.5, 5.0]
    """
    total = torch.zeros(patients, dtype=torch.float64).index_add_(0, owners, values.double())
    return (total / torch.bincount(owners, minlength=patients)).numpy()


def in_groups(patients: Iterable[Tensor], numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices in groups of one shape, patient after patient.

    Args:
        patients: (D, C, H, W) each; one after another is looked at.
        numbers: pixels times channels of a group, at most, unless one slice has more.

    Yields:
        (B,) int64 indices of the slices' patients and (B, C, H, W).
    """
    owners: list[int] = []
    held: list[Tensor] = []
    for index, volume in enumerate(patients):
        for image in volume:
            if held and ((len(held) + 1) * image.numel() > numbers or image.shape != held[0].shape):
                yield torch.tensor(owners), torch.stack(held)
                owners, held = [], []
            owners.append(index)
            held.append(image)
    if held:
        yield torch.tensor(owners), torch.stack(held)
