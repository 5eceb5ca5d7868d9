"""Pulse sequences: from a tissue's proton density and relaxation times to its signal.

The signal equations are functions of times in ms and angles in degrees. Each is the closed form of the steady state
(Haacke et al., Magnetic Resonance Imaging: Physical Principles and Sequence Design, 1999; Bernstein et al., Handbook of
MRI Pulse Sequences, 2004). A sequence holds the scanner's parameters and gives one signal a tissue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from garda.phantom.tissue import Properties, Tissue, Values


def balanced_ssfp(density: Values, t1: Values, t2: Values, tr: float, te: float, flip: float) -> Values:
    """Balanced steady-state free precession on resonance (Scheffler and Lehnhardt, Eur Radiol 13:2409, 2003, eq. 1).

    With T1 = T2 = T the steady state is ``density * sin(flip) / (1 + exp(-tr / T))``.
    """
    angle, e1, e2 = np.deg2rad(flip), np.exp(-tr / t1), np.exp(-tr / t2)
    steady = np.sin(angle) * (1 - e1) / (1 - (e1 - e2) * np.cos(angle) - e1 * e2)
    return density * steady * np.exp(-te / t2)


def spoiled_gradient_echo(density: Values, t1: Values, t2_star: Values, tr: float, te: float, flip: float) -> Values:
    """Spoiled gradient echo (Ernst and Anderson, Rev Sci Instrum 37:93, 1966); largest at cos(flip) = exp(-tr / T1)."""
    angle, e1 = np.deg2rad(flip), np.exp(-tr / t1)
    return density * np.sin(angle) * (1 - e1) / (1 - e1 * np.cos(angle)) * np.exp(-te / t2_star)


def spin_echo(density: Values, t1: Values, t2: Values, tr: float, te: float) -> Values:
    """Spin echo with 90 degree excitation; a turbo spin echo has the contrast of its effective echo time."""
    return density * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(density: Values, t1: Values, tr: float, ti: float) -> Values:
    """Longitudinal magnetisation ``ti`` after an inversion repeated every ``tr``; negative before it crosses zero.

    It crosses zero at ``ti = T1 * ln(2 / (1 + exp(-tr / T1)))``, which is ``T1 * ln 2`` for long ``tr``.
    """
    return density * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1))


class Sequence(Protocol):
    """Turns tissues into signals."""

    def signal(self, tissues: Properties) -> Values:
        """One signal a tissue, shape (8,), arbitrary unit; may be negative, since magnitude is taken after sampling."""


@dataclass(frozen=True)
class BalancedSSFP:
    """Cine imaging; blood is bright by its T2/T1, whether it flows or not.

    Attributes:
        tr: repetition time, ms.
        te: echo time, ms.
        flip: flip angle, degrees.
    """

    tr: float
    te: float
    flip: float

    def signal(self, tissues: Properties) -> Values:
        """See :func:`balanced_ssfp`."""
        return balanced_ssfp(tissues.density, tissues.t1, tissues.t2, self.tr, self.te, self.flip)


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """T1-weighted cine imaging; blood is bright only by inflow.

    Attributes:
        tr: repetition time, ms.
        te: echo time, ms.
        flip: flip angle, degrees.
        inflow: share of the blood in the slice that has met no pulse yet.
    """

    tr: float
    te: float
    flip: float
    inflow: float

    def signal(self, tissues: Properties) -> Values:
        """See :func:`spoiled_gradient_echo`; fresh blood has its full longitudinal magnetisation."""
        still = spoiled_gradient_echo(tissues.density, tissues.t1, tissues.t2_star, self.tr, self.te, self.flip)
        fresh = tissues.density * np.sin(np.deg2rad(self.flip)) * np.exp(-self.te / tissues.t2_star)
        return _in_blood(still, fresh, self.inflow)


@dataclass(frozen=True)
class BlackBloodSpinEcho:
    """T2-weighted turbo spin echo with dark blood (Simonetti et al., Radiology 199:49, 1996).

    Attributes:
        tr: repetition time, ms; two heart beats.
        te: effective echo time, ms.
        outflow: share of the blood that is nulled, or leaves the slice before its echo.
    """

    tr: float
    te: float
    outflow: float

    def signal(self, tissues: Properties) -> Values:
        """See :func:`spin_echo`."""
        still = spin_echo(tissues.density, tissues.t1, tissues.t2, self.tr, self.te)
        return _in_blood(still, np.zeros_like(still), self.outflow)


@dataclass(frozen=True)
class LateEnhancement:
    """Inversion recovery after contrast agent (Simonetti et al., Radiology 218:215, 2001): scar bright.

    The inversion time belongs to the protocol while the uptake of contrast agent belongs to the patient, so that the
    myocardium is nulled on average alone: where the agent is low, its magnitude comes near that of blood.

    Attributes:
        tr: time between inversions, ms; two heart beats.
        te: echo time of the gradient-echo readout, ms.
        ti: inversion time, ms; nulls healthy myocardium.
        blood_rate: growth of blood's 1/T1 by the contrast agent, 1/s.
    """

    tr: float
    te: float
    ti: float
    blood_rate: float

    def signal(self, tissues: Properties) -> Values:
        """See :func:`inversion_recovery`; T1 as in :meth:`Properties.enhanced`."""
        t1 = tissues.enhanced(self.blood_rate).t1
        return inversion_recovery(tissues.density, t1, self.tr, self.ti) * np.exp(-self.te / tissues.t2_star)


def _in_blood(still: Values, moving: Values, share: float) -> Values:
    """``still`` with ``share`` of blood's signal taken from ``moving``."""
    mixed = still.copy()
    mixed[Tissue.BLOOD] = (1 - share) * still[Tissue.BLOOD] + share * moving[Tissue.BLOOD]
    return mixed
