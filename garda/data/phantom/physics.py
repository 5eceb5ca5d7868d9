"""What the phantom is made of: proton density and relaxation times of each tissue, per field strength.

Sources (native values, in vivo or body temperature):

    blood, skeletal muscle, liver   Stanisz et al., Magn Reson Med 54:507, 2005 (1.5 T and 3 T)
    myocardium, 1.5 T               T1 Piechnik et al., J Cardiovasc Magn Reson 15:13, 2013
                                    T2 Giri et al., J Cardiovasc Magn Reson 11:56, 2009
    myocardium, 3 T                 von Knobelsdorff-Brenkenhoff et al., J Cardiovasc Magn Reson 15:53, 2013
    fat                             de Bazelaire et al., Radiology 230:652, 2004 (1.5 T and 3 T)
    lung                            T1 Jakob et al., J Magn Reson Imaging 14:795, 2001
                                    T2* Yu et al., Magn Reson Med 66:248, 2011
    T2* of heart and liver          Anderson et al., Eur Heart J 22:2171, 2001, at 1.5 T; about twice the rate at 3 T
                                    (Storey et al., J Magn Reson Imaging 25:540, 2007)
    proton density                  Wissmann et al. (MRXCAT), J Cardiovasc Magn Reson 16:63, 2014
    extracellular volume            myocardium and scar: Kellman et al., J Cardiovasc Magn Reson 14:64, 2012

What no source gives is assumed: the lung's T2 and its T1 at 3 T, the T2* of blood, muscle and fat (all long against the
echo times used), a scar's native T1 and T2 (15 % and 10 % above the myocardium's), and how far the remaining tissues
take up contrast agent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Tissue(IntEnum):
    """What a point of the anatomy consists of; the index into every array of :class:`Properties`."""

    AIR, LUNG, FAT, MUSCLE, LIVER, BLOOD, MYOCARDIUM, SCAR = range(8)


@dataclass(frozen=True)
class Properties:
    """Magnetic properties, one value a tissue in the order of :class:`Tissue`, each of shape (8,).

    Attributes:
        density: proton density, water is 1.
        t1: longitudinal relaxation time, ms.
        t2: transverse relaxation time, ms.
        t2_star: effective transverse relaxation time, ms.
        partition: contrast agent in the tissue as a share of that in blood, at equilibrium.
    """

    density: Values
    t1: Values
    t2: Values
    t2_star: Values
    partition: Values

    def varied(self, random: np.random.Generator, spread: float = 0.05, uptake: float = 0.25) -> Properties:
        """The same tissues in another person.

        Args:
            random: draws the person.
            spread: log-normal scatter of T1 and T2, tissue by tissue; density scatters half as much.
            uptake: log-normal scatter of contrast agent in all tissues: dose, kidneys, time since injection.
        """
        density, t1, t2 = np.exp(random.normal(0.0, spread, (3, len(Tissue))))
        partition = self.partition * np.exp(random.normal(0.0, uptake))
        return Properties(self.density * np.sqrt(density), self.t1 * t1, self.t2 * t2, self.t2_star * t2, partition)

    def enhanced(self, blood_rate: float) -> Properties:
        """The same tissues after contrast agent: 1/T1 grows in proportion to concentration.

        Args:
            blood_rate: by how much 1/T1 of blood has grown, 1/s.
        """
        return replace(self, t1=1 / (1 / self.t1 + 1e-3 * blood_rate * self.partition))


def properties(field: float) -> Properties:
    """The tissues at 1.5 T or 3 T; sources in the module's docstring.

    >>> float(properties(3.0).t1[Tissue.BLOOD])
    1932.0

    Args:
        field: field strength in tesla, 1.5 or 3.0.

    Raises:
        KeyError: another field strength.
    """
    t1, t2, t2_star = np.array(_RELAXATION[field])
    return Properties(np.array(_DENSITY), t1, t2, t2_star, np.array(_PARTITION))


# In the order of Tissue: air, lung, fat, muscle, liver, blood, myocardium, scar. Air has no protons; its times only
# keep the equations finite.
_DENSITY = (0.0, 0.20, 0.70, 0.80, 0.90, 0.95, 0.80, 0.80)
_HAEMATOCRIT = 0.42
_PARTITION = (0.0, 0.5, 0.1, 0.2, 0.5, 1.0, 0.254 / (1 - _HAEMATOCRIT), 0.685 / (1 - _HAEMATOCRIT))
_RELAXATION = {  # rows of T1, T2 and T2*, ms
    1.5: (
        (1000, 1219, 343, 1008, 576, 1441, 962, 1106),
        (100, 40, 58, 44, 46, 290, 52, 57),
        (100, 2.11, 30, 30, 33, 150, 40, 40),
    ),
    3.0: (
        (1000, 1300, 382, 1412, 812, 1932, 1159, 1333),
        (100, 40, 68, 50, 42, 275, 45, 50),
        (100, 0.74, 20, 25, 17, 80, 26, 26),
    ),
}


@dataclass(frozen=True)
class BalancedSSFP:
    """Balanced steady-state free precession, as in cine imaging: blood is bright by its T2/T1, whether it flows or not.

    Attributes:
        tr: repetition time, ms.
        te: echo time, ms.
        flip: flip angle, degrees.
    """

    tr: float
    te: float
    flip: float

    def signal(self, tissues: Properties) -> Values:
        """The steady state on resonance (Scheffler and Lehnhardt, Eur Radiol 13:2409, 2003, eq. 1).

        With T1 = T2 = T it is ``density * sin(flip) / (1 + exp(-tr / T))``.

        >>> one, long = np.ones(8), np.full(8, 1e9)
        >>> BalancedSSFP(tr=3, te=0, flip=90).signal(Properties(one, long, long, long, one))[:3]
        array([0.5, 0.5, 0.5])

        Returns:
            (8,) signals, arbitrary unit.
        """
        angle, e1, e2 = np.deg2rad(self.flip), np.exp(-self.tr / tissues.t1), np.exp(-self.tr / tissues.t2)
        steady = np.sin(angle) * (1 - e1) / (1 - (e1 - e2) * np.cos(angle) - e1 * e2)
        return tissues.density * steady * np.exp(-self.te / tissues.t2)


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """Spoiled gradient echo, as in T1-weighted cine imaging: blood is bright only by inflow.

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
        """The steady state (Ernst and Anderson, Rev Sci Instrum 37:93, 1966); fresh blood has its full magnetisation.

        It is largest at cos(flip) = exp(-tr / T1).

        Returns:
            (8,) signals, arbitrary unit.
        """
        angle, e1, decay = np.deg2rad(self.flip), np.exp(-self.tr / tissues.t1), np.exp(-self.te / tissues.t2_star)
        still = tissues.density * np.sin(angle) * (1 - e1) / (1 - e1 * np.cos(angle)) * decay
        return _in_blood(still, tissues.density * np.sin(angle) * decay, self.inflow)


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
        """Spin echo with 90 degree excitation; a turbo spin echo has the contrast of its effective echo time.

        Returns:
            (8,) signals, arbitrary unit.
        """
        still = tissues.density * (1 - np.exp(-self.tr / tissues.t1)) * np.exp(-self.te / tissues.t2)
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
        """Longitudinal magnetisation ``ti`` after an inversion repeated every ``tr``; negative before it crosses zero.

        It crosses zero at ``ti = T1 * ln(2 / (1 + exp(-tr / T1)))``, which is ``T1 * ln 2`` for long ``tr``; T1 as in
        :meth:`Properties.enhanced`.

        Returns:
            (8,) signals, arbitrary unit.
        """
        t1 = tissues.enhanced(self.blood_rate).t1
        recovered = tissues.density * (1 - 2 * np.exp(-self.ti / t1) + np.exp(-self.tr / t1))
        return recovered * np.exp(-self.te / tissues.t2_star)


def _in_blood(still: Values, moving: Values, share: float) -> Values:
    """``still`` with ``share`` of blood's signal taken from ``moving``."""
    mixed = still.copy()
    mixed[Tissue.BLOOD] = (1 - share) * still[Tissue.BLOOD] + share * moving[Tissue.BLOOD]
    return mixed


# Each has signal(tissues), which may be negative: magnitude is taken after sampling.
Sequence = BalancedSSFP | SpoiledGradientEcho | BlackBloodSpinEcho | LateEnhancement
