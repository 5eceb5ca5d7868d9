"""garda in Python: load a package, look at it, segment an array or a scan."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from garda.core.errors import ConfigError, DataError
from garda.data import components, preprocess, volume
from garda.data.volume import Frame, Volume
from garda.handover import load, verify
from garda.handover.format import CARD
from garda.handover.load import LoadedPackage
from garda.handover.signing import read_trusted
from garda.models import inference
from garda.runs.predict import Scan


class Segmentation(NamedTuple):
    """What a network says of one image, on the image's own grid.

    Attributes:
        labels: class indices, int64, in the axes of the image: (D, H, W) of an array, (X, Y, Z) of a file.
        probabilities: float32 in [0, 1] for each class, the background first: (K, ...) in the same axes.
    """

    labels: np.ndarray
    probabilities: np.ndarray


class Package:
    """A package that has been found whole.

    >>> package = load_package("package.zip")
    >>> package.domains
    ('bssfp_1p5t', 'tse_1p5t')
    >>> labels, probabilities = package.segment(np.random.rand(2, 80, 80), domain="tse_1p5t", spacing=(8.0, 1.5, 1.5))
    >>> labels.shape, probabilities.shape
    ((2, 80, 80), (4, 2, 80, 80))

    Attributes:
        digest: see :func:`garda.handover.format.package_digest`.
        card: the model card, as Markdown.
        domains: the domains met; the first is the source.
        classes: names of the classes, the background first.
    """

    def __init__(self, loaded: LoadedPackage, digest: str, card: str) -> None:
        """What :func:`load` gives."""
        self._loaded, self.digest, self.card = loaded, digest, card
        self.domains, self.classes = loaded.knowledge.domains, loaded.method.task.classes

    def segment(
        self,
        image: np.ndarray | str | Path,
        domain: str | None = None,
        spacing: tuple[float, float, float] | None = None,
    ) -> Segmentation:
        """Segment an image.

        Args:
            image: a scan that garda reads, by its path; or (D, H, W) or (D, H, W, C) real numbers of any range: slices,
                rows and columns that run as :class:`garda.data.volume.Volume` says.
            domain: whose images they are: one of :attr:`domains`, ``other`` for a site that has not been met; the last
                one met by default.
            spacing: of an array: mm from slice to slice, row to row, column to column.

        Raises:
            ConfigError: no such domain, or an array without spacing where the task resamples to one.
            DataError: the image cannot be read, is constant or not finite, or has other channels than the task.
        """
        method, knowledge = self._loaded.method, self._loaded.knowledge
        chosen = load.choose_domain(knowledge, domain)
        scan = self._read(image) if isinstance(image, (str, Path)) else self._wrap(np.asarray(image), spacing)
        network = method.compute.prepare(method.network_for(knowledge, chosen)).eval()
        standardised = method.standardise(knowledge, scan, chosen)
        parts = inference.probabilities(network, standardised, method.task, method.compute)
        found = torch.cat([part.cpu() for part in parts]).movedim(1, 0)
        labels = components.keep_largest(found.argmax(dim=0), knowledge.largest)
        if not isinstance(image, (str, Path)):
            return Segmentation(labels.numpy(), found.numpy())
        stored = np.stack([volume.in_stored_order(share, scan) for share in found])
        return Segmentation(volume.in_stored_order(labels, scan), stored)

    def _read(self, path: str | Path) -> Volume:
        case = Scan(Path(path), Path()).case
        return volume.read_volume(case, self._loaded.method.task, Path(), with_label=False)

    def _wrap(self, array: np.ndarray, spacing: tuple[float, float, float] | None) -> Volume:
        task = self._loaded.method.task
        if spacing is None and task.spacing_mm is not None:
            what = (
                f"the task resamples to {task.spacing_mm[0]:g} x {task.spacing_mm[1]:g} mm, and an array has no spacing"
            )
            raise ConfigError("spacing", what, "give spacing=(slice, row, column) in mm")
        pixels = array[..., None] if array.ndim == 3 else array
        if pixels.ndim != 4 or pixels.shape[-1] not in (1, task.channels):
            raise DataError("image", f"has the shape {array.shape}", f"give (D, H, W) or (D, H, W, {task.channels})")
        channels = np.moveaxis(pixels, -1, 0).astype(np.float32)
        if not np.isfinite(channels).all() or channels.min() == channels.max():
            raise DataError("image", "is constant, or holds NaN or infinite values", "give another image")
        scaled = preprocess.scale_intensity(channels, spacing, task.intensity)
        image = torch.from_numpy(np.repeat(scaled, task.channels // len(scaled), axis=0).swapaxes(0, 1).copy())
        return Volume("array", image, None, None, np.eye(4), spacing, Frame())


def load_package(path: str | Path, trust: Collection[str] = (), expect: str = "") -> Package:
    """See :func:`garda.load`."""
    with verify.open_package(Path(path), [read_trusted(key) for key in trust], expect) as found:
        card = (found.folder / CARD).read_text(encoding="utf-8")
        return Package(load.load_package(found.folder), found.digest, card)
