"""What the gate measures of the source, as it stands in the ledger; read where nothing is computed."""

from __future__ import annotations

import math

from garda.config import Config


class Views(Config):
    """Three views of how well a network knows what it is shown; each in [0, 1], higher for better.

    Attributes:
        steady: soft Dice of the answers to moved images and the moved answers. A network is made to answer so for what
            it has learnt, and for nothing else.
        certain: 1 - mean entropy / log K of the answers.
        agreed: soft Dice of the network's answers and the label maps that the generator reads from the same images;
            None where the generator reads none.
    """

    steady: float
    certain: float
    agreed: float | None = None

    def relative(self, source: Views) -> float:
        """Geometric mean of the views' ratios to the source's: 1 for images known as well as the source's."""
        pairs = zip(self._values(), source._values(), strict=True)
        ratios = [own / max(known, 1e-6) for own, known in pairs if own is not None and known is not None]
        return math.prod(ratios) ** (1 / len(ratios))

    def _values(self) -> tuple[float | None, ...]:
        return self.steady, self.certain, self.agreed


class Reference(Config):
    """What the source was like, from which all limits follow; a few numbers, measured once.

    Attributes:
        views: how well its segmenter knows it.
        blank: share of blank slices.
        greys: see :func:`garda.handover.observe.few_greys`.
        noise: see :func:`garda.handover.observe.roughness`.
        foreground: share of foreground that its segmenter finds.
        replay: Dice of its segmenter on labelled replay; None without a generator.
        look: distance of the replayed greys from the real ones; None without a generator.
    """

    views: Views
    blank: float
    greys: float
    noise: float
    foreground: float
    replay: float | None
    look: float | None
