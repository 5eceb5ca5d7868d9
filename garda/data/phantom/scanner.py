"""Four scanners, and how a scanner turns a person into an image: signal, sampling, coil, noise, windowing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from garda.data.phantom import physics
from garda.data.phantom.anatomy import CLASSES, Map, Person, Points, Reals
from garda.data.phantom.physics import BalancedSSFP, BlackBloodSpinEcho, LateEnhancement, Sequence, SpoiledGradientEcho

FINE = 2  # points of the anatomy along each side of a pixel
TEXTURE = 0.05  # relative scatter of proton density inside a tissue


@dataclass(frozen=True)
class Window:
    """How a vendor's reconstruction turns a magnitude (brightest tissue about 1) into stored values.

    Attributes:
        ceiling: magnitude that becomes ``top``; what is brighter is clipped.
        top: largest stored value.
        gamma: exponent.
        slope: steepness of a sigmoid around half the ceiling; 0 for none.
    """

    ceiling: float
    top: int
    gamma: float = 1.0
    slope: float = 0.0

    def store(self, magnitude: Reals) -> NDArray[np.int16]:
        """Values from 0 to ``top``, monotone in ``magnitude``; of one shape (..., N), both.

        >>> Window(ceiling=1.0, top=100).store(np.array([0.0, 0.5, 2.0], np.float32))
        array([  0,  50, 100], dtype=int16)
        """
        shown = np.clip(magnitude / self.ceiling, 0, 1) ** self.gamma
        if self.slope:
            edge = np.tanh(self.slope / 4)
            shown = (1 + np.tanh(self.slope / 2 * (shown - 0.5)) / edge) / 2
        return np.rint(self.top * shown).astype(np.int16)


@dataclass(frozen=True)
class Scanner:
    """One site's scanner and protocol.

    Attributes:
        field: field strength, T.
        sequence: the pulse sequence.
        spacing: pixel spacing, mm, in both directions of the slice.
        matrix: pixels along each side.
        thickness: distance of slices, mm.
        blur: full width at half maximum of the point spread, mm.
        bias: strength of the receive coil's shading: the natural logarithm of its range is about twice as large.
        noise: standard deviation of the noise in each of the two channels, as a share of the brightest tissue's signal.
        window: how intensities are stored.
        axes: orientation in which the file is stored, as in nibabel's axis codes.
    """

    field: float
    sequence: Sequence
    spacing: float
    matrix: int
    thickness: float
    blur: float
    bias: float
    noise: float
    window: Window
    axes: str

    def points(self, fine: int = 1) -> Points:
        """(H, W) positions of the pixels, mm from the centre, each split into ``fine`` by ``fine`` points."""
        side = self.matrix * fine
        line = ((np.arange(side) - (side - 1) / 2) * self.spacing / fine).astype(np.float32)
        return line[None, :] + 1j * line[:, None]


BSSFP = BalancedSSFP(tr=3.0, te=1.5, flip=60)
GRE = SpoiledGradientEcho(tr=6.0, te=2.5, flip=15, inflow=0.12)
TSE = BlackBloodSpinEcho(tr=1700, te=60, outflow=0.9)
LGE = LateEnhancement(tr=1700, te=1.5, ti=340, blood_rate=2.0)
SITES = {  # field, sequence, spacing, matrix, thickness, blur, bias, noise, window, axes
    "bssfp_1p5t": Scanner(1.5, BSSFP, 1.4, 144, 8, 1.6, 0.25, 0.02, Window(ceiling=1.1, top=1023), "LPS"),
    "gre_3t": Scanner(3.0, GRE, 1.7, 120, 8, 2.2, 0.5, 0.05, Window(ceiling=1.3, top=4095, gamma=0.8), "RAS"),
    "tse_1p5t": Scanner(1.5, TSE, 1.8, 114, 10, 2.4, 0.35, 0.04, Window(ceiling=1.2, top=2047, slope=5), "LAS"),
    "lge_3t": Scanner(3.0, LGE, 2.2, 94, 10, 2.8, 0.5, 0.06, Window(ceiling=0.9, top=511), "RPI"),
}


def acquire(
    person: Person, scanner: Scanner, slices: int, random: np.random.Generator
) -> tuple[NDArray[np.int16], Map]:
    """Scan one person.

    Args:
        person: who is scanned.
        scanner: site and protocol.
        slices: number of slices, evenly from the heart's base to its apex.
        random: draws tissue properties, coil shading and noise.

    Returns:
        (D, H, W) stored intensities and (D, H, W) class indices; rows run to the back, columns to the patient's left.
    """
    signal = scanner.sequence.signal(physics.properties(scanner.field).varied(random))
    signal = (signal / np.abs(signal).max()).astype(np.float32)
    fine, shading = scanner.points(FINE), coil_shading(scanner, random)
    images, labels = [], []
    for height in np.linspace(0, 1, slices):
        tissue, label, texture = person.slice(fine, float(height), random)
        sampled = shading * _sample(signal[tissue] * (1 + np.float32(TEXTURE) * texture), scanner)
        images.append(scanner.window.store(magnitude(sampled, scanner.noise, random)))
        labels.append(majority(label, FINE))
    return np.stack(images), np.stack(labels)


def coil_shading(scanner: Scanner, random: np.random.Generator) -> Reals:
    """(H, W) sensitivity of an anterior surface coil, geometric mean about 1: strong in front, weak at the back.

    The logarithm is a quadratic polynomial of the position, random apart from its slope from front to back.
    """
    points = scanner.points()
    place = points / np.abs(points.real).max()
    x, y = place.real, place.imag
    slope, across, bend, twist = random.normal((-1, 0, 0, 0), 0.3)
    return np.exp(scanner.bias * (slope * y + across * x + bend * (x * x + y * y - 2 / 3) + twist * x * y))


def magnitude(signal: Reals, noise: float, random: np.random.Generator) -> Reals:
    """Magnitude of a signal under complex Gaussian noise: Rician (Gudbjartsson and Patz, Magn Reson Med 34:910, 1995).

    >>> magnitude(np.array([-2.0, 3.0], np.float32), noise=0.0, random=np.random.default_rng(0))
    array([2., 3.], dtype=float32)

    Args:
        signal: any shape; may be negative.
        noise: standard deviation in each channel.
        random: draws the noise.
    """
    real, imaginary = noise * random.standard_normal((2, *signal.shape), dtype=np.float32)
    return np.hypot(signal + real, imaginary)


def majority(label: Map, fine: int) -> Map:
    """The commonest class in each ``fine`` by ``fine`` block of (H, W); the lower one where two are equally common.

    >>> majority(np.array([[1, 3, 2, 2], [3, 3, 1, 1]], np.uint8), fine=2)
    array([[3, 1]], dtype=uint8)
    """
    shares = np.stack([_block_mean((label == index).astype(np.float32), fine) for index in range(len(CLASSES))])
    return shares.argmax(axis=0).astype(np.uint8)


def _sample(signal: Reals, scanner: Scanner) -> Reals:
    """Blur by the point spread and average over each pixel."""
    sigma = scanner.blur / np.sqrt(8 * np.log(2)) * FINE / scanner.spacing
    return _block_mean(gaussian_filter(signal, sigma, mode="nearest"), FINE)


def _block_mean(values: Reals, fine: int) -> Reals:
    height, width = (side // fine for side in values.shape)
    return values.reshape(height, fine, width, fine).mean(axis=(1, 3))
