"""A random person in short-axis view: the heart, and what lies around it.

Fat, lungs, descending aorta, liver and stomach surround the heart; the chest wall's muscle and fat lie in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from garda.phantom.heart import Heart
from garda.phantom.outline import Map, Outline, Points, Reals
from garda.phantom.tissue import Tissue


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
        """Draw into ``tissue``, inner layers over outer ones; ``height`` runs from 0 (base) to 1 (apex)."""
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
        return cls(
            chest=Chest.draw(random),
            heart=Heart.draw(random),
            place=complex(12 * np.sqrt(random.random()) * np.exp(2j * np.pi * random.random())),
            turn=complex(np.exp(1j * random.uniform(-0.12, 0.12))),
            septum=complex(np.exp(1j * random.uniform(-0.4, 0.4))),
        )

    def slice(self, points: Points, height: float, random: np.random.Generator) -> tuple[Map, Map, Reals]:
        """Draw one slice.

        Args:
            points: (H, W) positions, mm, of a square grid.
            height: 0 at the heart's base, 1 at its apex.
            random: draws what has no shape: fine structure and the vessels of lung and liver.

        Returns:
            (H, W) tissue indices, (H, W) class indices of :data:`garda.phantom.heart.CLASSES`, and (H, W) fine
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
