"""A random heart in short-axis view, drawn slice by slice from its base to its apex.

The left ventricle is round with a muscular wall, the right ventricle is a crescent on its right side. Papillary muscles
count as left ventricle, the thin wall of the right ventricle as background, a scar as myocardium.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from garda.phantom.outline import Map, Outline, Points
from garda.phantom.tissue import Tissue

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
        first = random.uniform(0, 0.7)
        return cls(
            direction=complex(np.exp(2j * np.pi * random.random())),
            width=random.uniform(0.4, 1.1),
            depth=random.uniform(0.4, 1.0),
            heights=(first, first + random.uniform(0.3, 0.7)),
        )


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
        """Draw into ``tissue`` and ``label``; ``height`` runs from 0 (base) to 1 (apex)."""
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
