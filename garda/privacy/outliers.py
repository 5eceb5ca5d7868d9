"""Members that stand out: single patients learnt by heart among many that are not.

Shares and areas under a curve compare sides, and one patient among many moves neither beyond chance: the one whom
generated images come nearest is a member by luck half the time, and no ranking tells how much nearer they come. So each
patient gets a margin: how much nearer the nearest generated image comes to its best matched slice than the nearest real
slice of somebody else does. A member stands out where its margin lies above what outsiders' margins let expect of one
more patient, by the prediction interval of a normal sample (Hahn and Meeker 1991, section 4.8), with Bonferroni's
correction for the number of members. Margins are differences of Fisher's transform of correlations, which makes them
nearly normal; that is an assumption, the only one of its kind here. From a correlation of 0.95 on, two images count as
equal: where somebody else's slice is as near, a nearer one tells nothing, and the transform would make much of it.

In an embedding the assumption is weaker still, since kinds of images lie in clumps, and a kind that happens to be rare
among outsiders stands out as a whole. It shows that such images are drawn well, not that one of them is copied. That
count is told, and no threshold is put on it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from garda.privacy.figures import Outliers, SpaceName

EQUAL = 0.95  # nearness from which two images count as equal
LEVEL = 0.01  # chance that any member stands out where none has been learnt by heart


def margins(generated: Tensor, reference: Tensor, owners: Tensor, patients: int) -> NDArray[np.float64]:
    """(P,) largest margin of each patient's slices.

    Args:
        generated: (S,) each slice's nearness to the nearest generated image, in [-1, 1].
        reference: (S,) its nearness to the nearest real slice of another patient.
        owners: (S,) patients of the slices.
        patients: P.
    """
    ours, theirs = (values.double().clamp(-EQUAL, EQUAL).atanh() for values in (generated, reference))
    largest = torch.full((patients,), -torch.inf, dtype=torch.float64)
    return largest.scatter_reduce(0, owners, ours - theirs, "amax").numpy()


def find_outliers(space: SpaceName, margin: NDArray[np.float64], members: int) -> Outliers:
    """How many members stand out.

    Args:
        space: where nearness was measured.
        margin: (P,) of each patient, members first.
        members: number of members; the other patients, at least two, are outsiders.
    """
    ours, theirs = margin[:members], margin[members:]
    spread = max(float(theirs.std(ddof=1)), 1e-6) * math.sqrt(1 + 1 / len(theirs))
    above = stats.t.sf((ours - theirs.mean()) / spread, df=len(theirs) - 1)
    return Outliers(space=space, count=int((above < LEVEL / members).sum()), members=members, outsiders=len(theirs))
