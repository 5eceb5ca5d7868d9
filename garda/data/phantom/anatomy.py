"""Closed curves in a slice, from which the anatomy is drawn.

Points are complex numbers in mm: the real part grows to the patient's left, the imaginary part to the back. A turn is
then a product and a shift a sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from garda.data.phantom.physics import Tissue

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

        >>> circle = Outline((0, 0, 0, 0))
        >>> circle.reach(np.array([0, 10, 20j], np.complex64), 20 + 20j)
        array([0. , 0.5, 1. ], dtype=float32)

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


CLASSES = ("background", "right_ventricle", "myocardium", "left_ventricle")
RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = 1, 2, 3


@dataclass(frozen=True)
class Scar:
    """A fibrous segment of the left ventricle's wall.

    Attributes:
        direction: its middle, as a unit complex number seen from the cavity's centre.
        width: half its angle, radians.
        depth: share of the wall it takes, from the inside.
        heights: first and last height, 0 (base) to 1 (apex).
    """

    direction: complex
    width: float
    depth: float
    heights: tuple[float, float]

    @classmethod
    def draw(cls, random: np.random.Generator) -> Scar:
        """A random scar."""
        first, direction = random.uniform(0, 0.7), complex(np.exp(2j * np.pi * random.random()))
        width, depth = random.uniform(0.4, 1.1), random.uniform(0.4, 1.0)
        return cls(direction, width, depth, (first, first + random.uniform(0.3, 0.7)))


@dataclass(frozen=True)
class Heart:
    """Both ventricles; lengths in mm at the base.

    Attributes:
        cavity: outline of the left ventricle's cavity.
        outer: outline of the left ventricle's outer surface and of the fat.
        crescent: outline of the right ventricle.
        cavity_radius: of the left ventricle.
        wall: thickness of its muscle.
        right_axes: half axes of the right ventricle, as a share of the left one's outer radius.
        right_end: height at which the right ventricle ends; above 1 it reaches the apex slice.
        axis: shift from base to apex.
        fat: thickness of the fat on the heart.
        papillary: directions of the two papillary muscles, unit complex numbers.
        scar: a scar, or None.
    """

    cavity: Outline
    outer: Outline
    crescent: Outline
    cavity_radius: float
    wall: float
    right_axes: complex
    right_end: float
    axis: complex
    fat: float
    papillary: tuple[complex, complex]
    scar: Scar | None

    @classmethod
    def draw(cls, random: np.random.Generator) -> Heart:
        """A random heart, anywhere between systole and diastole; three in five have a scar."""
        turn = np.exp(1j * random.uniform(-0.4, 0.4))
        return cls(
            cavity=Outline.draw(random, 0.10),
            outer=Outline.draw(random, 0.06),
            crescent=Outline.draw(random, 0.15),
            cavity_radius=random.uniform(16, 25),
            wall=random.uniform(7, 11),
            right_axes=complex(random.uniform(0.75, 1.0), random.uniform(0.95, 1.15)),
            right_end=random.uniform(0.9, 1.2),
            axis=complex(random.uniform(0, 8), random.uniform(-4, 4)),
            fat=random.uniform(2, 6),
            papillary=(complex(turn * np.exp(0.9j)), complex(turn * np.exp(2.4j))),
            scar=Scar.draw(random) if random.random() < 0.6 else None,
        )

    def paint(self, tissue: Map, label: Map, points: Points, height: float) -> None:
        """Draw into ``tissue`` and ``label``, both (H, W).

        Args:
            tissue: indices of :class:`Tissue`, changed in place.
            label: class indices of :data:`CLASSES`, changed in place.
            points: (H, W) positions relative to the heart's centre, mm.
            height: 0 at the base, 1 at the apex.
        """
        base = self.cavity_radius + self.wall
        taper = np.sqrt(1 - (0.84 * height) ** 2)  # a half ellipsoid, cut off short of its tip
        cavity = self.cavity_radius * taper
        outer = cavity + self.wall * (1 - 0.2 * height)
        left = points - (0.4 * base + self.axis * height)
        right = left + 0.85 * outer
        axes = self.right_axes * base * np.sqrt(max(0.0, 1 - (height / self.right_end) ** 2))

        from_left = self.outer.reach(left, outer * (1 + 1j))
        tissue[from_left < 1 + self.fat / outer] = Tissue.FAT
        if axes.real > 5:  # a smaller right ventricle would hide behind the left one
            from_right = self.crescent.reach(right, axes)
            tissue[from_right < 1 + (3 + self.fat) / axes.real] = Tissue.FAT
            tissue[from_right < 1 + 3 / axes.real] = Tissue.MYOCARDIUM
            in_right = (from_right < 1) & (from_left >= 1)
            tissue[in_right], label[in_right] = Tissue.BLOOD, RIGHT_VENTRICLE
        in_wall, from_cavity = from_left < 1, self.cavity.reach(left, cavity * (1 + 1j))
        tissue[in_wall], label[in_wall] = Tissue.MYOCARDIUM, MYOCARDIUM
        if self.scar is not None and self.scar.heights[0] <= height <= self.scar.heights[1]:
            around = np.abs(np.angle(left * np.conj(self.scar.direction))) < self.scar.width
            tissue[in_wall & around & (from_cavity < 1 + self.scar.depth * self.wall / cavity)] = Tissue.SCAR
        in_left = from_cavity < 1
        tissue[in_left], label[in_left] = Tissue.BLOOD, LEFT_VENTRICLE
        for direction in self.papillary:
            muscle = np.abs(left - 0.68 * cavity * direction) < 0.16 * cavity
            tissue[muscle & in_left] = Tissue.MYOCARDIUM


@dataclass(frozen=True)
class Chest:
    """What surrounds the heart; lengths in mm, positions relative to the heart's centre.

    Attributes:
        outline: of the chest wall's layers.
        depth: from the heart's centre to the inside of the anterior chest wall.
        muscle: thickness of the chest wall.
        fat: thickness of the subcutaneous fat.
        organs: outline of liver, stomach and mediastinum.
        mediastinum: half the width of the fat between the lungs.
        liver: top of the liver below the heart's centre at the base; it rises towards the apex.
        aorta: centre of the descending aorta.
        aorta_radius: of its lumen.
    """

    outline: Outline
    depth: float
    muscle: float
    fat: float
    organs: Outline
    mediastinum: float
    liver: float
    aorta: complex
    aorta_radius: float

    @classmethod
    def draw(cls, random: np.random.Generator) -> Chest:
        """A random chest."""
        return cls(
            outline=Outline.draw(random, 0.04),
            depth=random.uniform(52, 60),
            muscle=random.uniform(8, 14),
            fat=random.uniform(5, 18),
            organs=Outline.draw(random, 0.15),
            mediastinum=random.uniform(18, 34),
            liver=random.uniform(36, 52),
            aorta=complex(random.uniform(30, 48), random.uniform(52, 62)),
            aorta_radius=random.uniform(8, 12),
        )

    def paint(self, tissue: Map, points: Points, height: float) -> None:
        """Draw into ``tissue``, inner layers over outer ones; arguments as in :meth:`Heart.paint`."""
        back = 70.0  # the wall's centre lies behind the heart
        front = back + self.depth
        wall = front * self.outline.reach(points - 1j * back, complex(130, front)) - front  # mm outside the cavity
        tissue[wall < self.muscle + self.fat] = Tissue.FAT
        tissue[wall < self.muscle] = Tissue.MUSCLE
        inside = wall < 0
        tissue[inside] = Tissue.LUNG
        middle = self.organs.reach(points + 15, complex(self.mediastinum, self.depth + 15))
        tissue[inside & (middle < 1)] = Tissue.FAT
        stomach = self.organs.reach(points - (60 + 105j), 50 + 40j)
        tissue[inside & (stomach < 1)] = Tissue.MUSCLE
        tissue[inside & (stomach < 0.9)] = Tissue.FAT
        top = self.liver - 10 * height
        tissue[inside & (self.organs.reach(points - complex(-45, top + 60), 85 + 60j) < 1)] = Tissue.LIVER
        vessel = np.abs(points - self.aorta)
        tissue[vessel < self.aorta_radius + 2] = Tissue.MUSCLE
        tissue[vessel < self.aorta_radius] = Tissue.BLOOD


@dataclass(frozen=True)
class Person:
    """One patient on the scanner's table.

    Attributes:
        chest: what surrounds the heart.
        heart: both ventricles.
        place: the heart's centre in the field of view, mm; at most 12 mm from the middle.
        turn: turn of the whole chest, a unit complex number.
        septum: turn of the heart inside the chest, a unit complex number.
    """

    chest: Chest
    heart: Heart
    place: complex
    turn: complex
    septum: complex

    @classmethod
    def draw(cls, random: np.random.Generator) -> Person:
        """A random person."""
        chest, heart = Chest.draw(random), Heart.draw(random)
        place = complex(12 * np.sqrt(random.random()) * np.exp(2j * np.pi * random.random()))
        turn, septum = (complex(np.exp(1j * random.uniform(-most, most))) for most in (0.12, 0.4))
        return cls(chest, heart, place, turn, septum)

    def slice(self, points: Points, height: float, random: np.random.Generator) -> tuple[Map, Map, Reals]:
        """Draw one slice.

        Args:
            points: (H, W) positions, mm, of a square grid.
            height: 0 at the heart's base, 1 at its apex.
            random: draws what has no shape: fine structure and the vessels of lung and liver.

        Returns:
            (H, W) tissue indices, (H, W) class indices of :data:`garda.data.phantom.anatomy.CLASSES`, and (H, W) fine
            structure with mean 0 and standard deviation about 1.
        """
        tissue, label = np.zeros(points.shape, np.uint8), np.zeros(points.shape, np.uint8)
        here = ((points - self.place) * np.conj(self.turn)).astype(np.complex64)
        texture = _texture(points, random)
        self.chest.paint(tissue, here, height)
        vessels = (tissue == Tissue.LUNG) & (texture > 2) | (tissue == Tissue.LIVER) & (texture < -2)
        tissue[vessels] = Tissue.BLOOD
        self.heart.paint(tissue, label, (here * np.conj(self.septum)).astype(np.complex64), height)
        return tissue, label, texture


def _texture(points: Points, random: np.random.Generator) -> Reals:
    """Gaussian noise of 2 mm correlation length, mean 0 and standard deviation about 1."""
    sigma = 2.0 / float(np.abs(points[0, 1] - points[0, 0]))
    noise = random.standard_normal(points.shape, dtype=np.float32)
    return gaussian_filter(noise, sigma, mode="wrap") * np.float32(2 * np.sqrt(np.pi) * sigma)
