"""Of some classes the largest piece alone, as in nnU-Net (Isensee et al., Nature Methods 18, 203-211, 2021)."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from garda.data.task import Groups


def keep_largest(label: Tensor, groups: Groups) -> Tensor:
    """A label map in which each group of classes is background outside its largest piece.

    >>> keep_largest(torch.tensor([[[1, 1, 0, 1]]]), ((1,),))
    tensor([[[1, 1, 0, 0]]])

    Args:
        label: (D, H, W) class indices; voxels that share a face are of one piece.
        groups: of classes.
    """
    for group in groups:
        inside = np.isin(label.numpy(), group)
        pieces, count = ndimage.label(inside)
        if count > 1:
            largest = np.bincount(pieces[inside]).argmax()
            label = torch.where(torch.from_numpy(inside & (pieces != largest)), 0, label)
    return label


def choose_groups(scans: Iterable[tuple[Tensor, Tensor]], classes: int) -> Groups:
    """What of which the largest piece is to be kept: the whole foreground, then each class.

    A group is taken where Dice (mean over classes and scans) rises, or stays while the group is in one piece in every
    label, which says something of scans that are read less well.

    >>> wanted, found = torch.tensor([[[1, 1, 0, 2, 0]]]), torch.tensor([[[1, 1, 0, 2, 1]]])
    >>> choose_groups([(found, wanted)], classes=3)
    ((1,), (2,))

    Args:
        scans: (D, H, W) class indices found and wanted, of each scan.
        classes: K, the background included.
    """
    pairs, chosen = list(scans), list[tuple[int, ...]]()
    for group in [tuple(range(1, classes)), *((each,) for each in range(1, classes) if classes > 2)]:
        changed = [(keep_largest(found, (group,)), wanted) for found, wanted in pairs]
        gain = _dice(changed, classes) - _dice(pairs, classes)
        whole = all(torch.equal(keep_largest(wanted, (group,)), wanted) for _, wanted in pairs)
        if gain > 0 or (gain == 0 and whole and pairs):
            pairs, chosen = changed, [*chosen, group]
    return tuple(chosen)


def _dice(pairs: Sequence[tuple[Tensor, Tensor]], classes: int) -> float:
    values = []
    for found, wanted in pairs:
        for each in range(1, classes):
            total = (found == each).sum() + (wanted == each).sum()
            if total:
                values.append(2 * float(((found == each) & (wanted == each)).sum()) / float(total))
    return float(np.mean(values)) if values else 0.0
