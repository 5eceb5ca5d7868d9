"""Labelled slices of the source that are not learnt from: they say when it has been learnt, and what reads it best.

They are the ``val`` cases. Where there are none, a tenth of the training patients is set aside; of fewer than ten
patients, the middle tenth of each scan's labelled slices, where there are ten slices at least.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from garda.data.manifest import Case
from garda.data.sequence import Domain
from garda.data.volume import Volume

TENTH = 10


def split_cases(domain: Domain) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """The cases that are learnt from, and those held out; no case is held out where slices must be.

    Args:
        domain: the source.
    """
    train = domain.split("train")
    held_out = tuple(case for case in domain.split("val") if case.labels)
    if held_out:
        return train, held_out
    patients = list(dict.fromkeys(case.patient for case in train))
    chosen = set(patients[TENTH // 2 :: TENTH]) if len(patients) >= TENTH else set()
    return (
        tuple(case for case in train if case.patient not in chosen),
        tuple(case for case in train if case.patient in chosen),
    )


def split_slices(volumes: Iterable[Volume]) -> tuple[list[Volume], list[Volume]]:
    """Scans without their middle tenth of labelled slices, and that tenth; none of it where all have fewer than ten.

    >>> import numpy as np
    >>> from garda.data.volume import Frame
    >>> label = torch.zeros(20, 4, 4, dtype=torch.long)
    >>> scan = Volume("a", torch.rand(20, 1, 4, 4), label, None, np.eye(4), None, Frame())
    >>> [len(part.image) for (part,) in split_slices([scan])]
    [18, 2]
    """
    scans = [_labelled(scan) for scan in volumes]
    if sum(len(scan.image) for scan in scans) < TENTH:
        return scans, []
    kept, held_out = [], []
    for scan in scans:
        count = len(scan.image)
        share = max(1, count // TENTH) if count > 1 else 0
        inside = torch.zeros(count, dtype=torch.bool)
        inside[(count - share) // 2 : (count - share) // 2 + share] = True
        kept.append(_select(scan, ~inside))
        held_out.append(_select(scan, inside))
    return kept, held_out


def _labelled(scan: Volume) -> Volume:
    return scan if scan.labelled is None else _select(scan, scan.labelled)


def _select(scan: Volume, chosen: torch.Tensor) -> Volume:
    label = None if scan.label is None else scan.label[chosen]
    return replace(scan, image=scan.image[chosen], label=label, labelled=None)
