"""Closed curves in a slice, from which the anatomy is drawn.

Points are complex numbers in mm: the real part grows to the patient's left, the imaginary part to the back. A turn is
then a product and a shift a sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.complex64]
Reals = NDArray[np.float32]
Map = NDArray[np.uint8]


@dataclass(frozen=True)
class Outline:
    """A smooth closed curve that deviates from an ellipse by a few waves around its circumference.

    Attributes:
        waves: complex amplitudes of 2, 3, 4 and 5 waves, as a share of the radius.
    """

    waves: tuple[complex, ...]

    @classmethod
    def draw(cls, random: np.random.Generator, roughness: float) -> Outline:
        """A random outline that stays within about ``roughness`` (a share of the radius) of its ellipse."""
        phases = np.exp(2j * np.pi * random.random(4))
        sizes = roughness * random.uniform(0.3, 1.0, 4) / np.arange(2, 6)
        return cls(tuple(complex(wave) for wave in sizes * phases))

    def reach(self, points: Points, axes: complex) -> Reals:
        """How far out each point lies: 0 in the centre, 1 on the curve.

        Args:
            points: relative to the curve's centre, mm.
            axes: half axes of the ellipse, mm; the real part along the real axis.
        """
        direction = np.empty(points.shape, np.complex64)
        direction.real, direction.imag = points.real / axes.real, points.imag / axes.imag
        distance: Reals = np.abs(direction)
        direction /= np.maximum(distance, np.float32(1e-6))
        wave: Points = np.zeros_like(direction)
        for amplitude in reversed(self.waves):  # Horner's scheme: sum of waves[m - 2] * direction**m
            wave += np.complex64(amplitude)
            wave *= direction
        wave *= direction
        return distance / (1 + wave.real)
