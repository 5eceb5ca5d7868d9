"""The gate's numbers, their limits, and what follows; read where nothing is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from garda.core.config import Config

Decision = Literal["promote", "hold", "refuse"]
Limits = tuple[float, float]  # beyond the first a check holds, beyond the second it refuses
ORDER: tuple[Decision, ...] = ("promote", "hold", "refuse")


class GateSettings(Config):
    """Limits in pairs: beyond the first a stage is held, beyond the second it is refused.

    Attributes:
        sample: slices of a domain, and replayed ones, that are looked at.
        slices: fewest slices of a target.
        blank: largest share of blank slices: how far above the source's, as a share of what is left to 1.
        greys: largest share of the pixels in as few greys as there are classes; as ``blank``.
        noise: largest roughness; as ``blank``: 0 for the source's, 1 for white noise.
        recognition: lowest recognition of the target's images, as a share of the source's.
        unaided: factor of both limits of recognition where no generator reads the images: the segmenter's own two views
            part less.
        agreement: lowest Dice of new and old segmenter on replayed images of each domain seen before.
        replay: lowest Dice on labelled replay in the new style, as a share of the source's in its own.
        style: largest distance of the greys drawn in the new style from the target's; as ``blank``.
        diversity: lowest diversity of images drawn in the new style, as a share of that of the same anatomies in the
            source's.
        foreground: largest ratio, either way, of the foreground found in the target's images to the source's.
    """

    sample: int = Field(default=64, ge=4)
    slices: tuple[int, int] = (8, 4)
    blank: Limits = (0.5, 0.5)
    greys: Limits = (0.3, 0.3)
    noise: Limits = (0.5, 0.5)
    recognition: Limits = (0.79, 0.77)
    unaided: float = Field(default=1.07, gt=0)
    agreement: Limits = (0.9, 0.8)
    replay: Limits = (0.6, 0.5)
    style: Limits = (0.2, 0.3)
    diversity: Limits = (0.5, 0.3)
    foreground: Limits = (8.0, 10.0)


class Check(Config):
    """One number against its limit.

    Attributes:
        name: such as ``recognition``.
        domain: the domain that it is about.
        value: as measured; None where it is not a number.
        limit: where it was refused the second limit, which it is beyond, else the first.
        decision: what follows from it.
        reason: one line.
        lowest: whether the value must not be below the limit, rather than above it.
    """

    name: str
    domain: str
    value: float | None
    limit: float
    decision: Decision
    reason: str
    lowest: bool = False


class GateDecision(Config):
    """What follows from all checks together: the worst that one of them says.

    Attributes:
        decision: ``promote``, ``hold`` (keep it aside until a person has looked) or ``refuse``.
        checks: all of them.
    """

    decision: Decision
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> list[str]:
        """A line for each check that did not pass, the worst first."""
        failed = [check for check in self.checks if check.decision != "promote"]
        return [check.reason for check in sorted(failed, key=lambda check: -ORDER.index(check.decision))]


def failed(domain: str, reason: str) -> Check:
    """The check of a target whose loss stopped being a number."""
    return Check(name="finite", domain=domain, value=None, limit=0, decision="refuse", reason=reason)


def decide(checks: Sequence[Check]) -> GateDecision:
    """The worst decision of all checks.

    >>> sure, unsure = (at_most("noise", "b", value, (0.5, 0.7), "share of noise") for value in (0.1, 0.6))
    >>> decide([sure, unsure]).decision
    'hold'
    """
    worst = max((ORDER.index(check.decision) for check in checks), default=0)
    return GateDecision(decision=ORDER[worst], checks=tuple(checks))


def share_of(source: float, shares: Limits) -> Limits:
    """Shares of the source's value.

    >>> share_of(0.8, (0.75, 0.5))
    (0.6000000000000001, 0.4)
    """
    return source * shares[0], source * shares[1]


def above(source: float, shares: Limits) -> Limits:
    """The source's share and a part of what is left to 1.

    >>> above(0.5, (0.5, 0.75))
    (0.75, 0.875)
    """
    return source + shares[0] * (1 - source), source + shares[1] * (1 - source)


def at_least(name: str, domain: str, value: float, limits: Limits, what: str) -> Check:
    """A check of a value that must not be small; one that is no number is refused.

    Args:
        name: of the check.
        domain: that it is about.
        value: as measured.
        limits: below the first it is held, below the second refused.
        what: the value in words, for the reason.

    >>> found = at_least("agreement", "b", 0.85, (0.9, 0.8), "Dice of new and old answers")
    >>> found.decision, found.reason
    ('hold', 'b: Dice of new and old answers is 0.85, must be at least 0.9')
    """
    return _check(name, domain, value, limits, what, lowest=True)


def at_most(name: str, domain: str, value: float, limits: Limits, what: str) -> Check:
    """A check of a value that must not be large; arguments as of :func:`at_least`, above instead of below."""
    return _check(name, domain, value, limits, what, lowest=False)


def _check(name: str, domain: str, value: float, limits: Limits, what: str, *, lowest: bool) -> Check:
    keeps, words = (operator.ge, "at least") if lowest else (operator.le, "at most")
    decision: Decision = "promote" if keeps(value, limits[0]) else "hold" if keeps(value, limits[1]) else "refuse"
    limit = limits[1] if decision == "refuse" else limits[0]
    known, shown = (value, f"is {value:.3g}") if math.isfinite(value) else (None, "is no number")
    reason = f"{domain}: {what} {shown}, must be {words} {limit:.3g}"
    return Check(name=name, domain=domain, value=known, limit=limit, decision=decision, reason=reason, lowest=lowest)


def both_limits(check: Check, settings: GateSettings | None) -> tuple[float | None, float | None]:
    """The limits beyond which a check's value is held, and refused; a check keeps one of them, settings give the other.

    Args:
        check: as of a ledger.
        settings: that it was made with; None, or a check that they do not name, leaves the other limit unknown.

    >>> settings = GateSettings(noise=(0.5, 0.75), replay=(0.6, 0.45))
    >>> both_limits(at_most("noise", "b", 0.7, above(0.0, settings.noise), "share"), settings)
    (0.5, 0.75)
    >>> low, lower = both_limits(at_least("replay", "b", 0.1, share_of(0.8, settings.replay), "Dice"), settings)
    >>> round(low, 3), round(lower, 3)
    (0.48, 0.36)
    """
    refused = check.decision == "refuse"
    shares: Limits | None = (1.0, 1.0) if check.name == "finite" else getattr(settings, check.name, None)
    if shares is None:
        return (None, check.limit) if refused else (check.limit, None)
    known, other = shares if not refused else shares[::-1]
    if check.name in ("blank", "greys", "noise", "style"):
        found = None if known == 1 else 1 - (1 - check.limit) * (1 - other) / (1 - known)
    else:
        found = check.limit if known == other else None if known == 0 else check.limit * other / known
    return (found, check.limit) if refused else (check.limit, found)


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
        pairs = [(self.steady, source.steady), (self.certain, source.certain), (self.agreed, source.agreed)]
        ratios = [own / max(known, 1e-6) for own, known in pairs if own is not None and known is not None]
        return math.prod(ratios) ** (1 / len(ratios))


class SourceBaseline(Config):
    """What the source was like, from which all limits follow; a few numbers, measured once.

    Attributes:
        views: how well its segmenter knows it.
        blank: share of blank slices.
        greys: see :func:`garda.safety.quality.few_greys`.
        noise: see :func:`garda.safety.quality.roughness`.
        foreground: share of foreground that its segmenter finds.
        replay: Dice of its segmenter on labelled replay; None without a generator.
        look: distance of the greys replayed in its style from the real ones; None without a generator.
    """

    views: Views
    blank: float
    greys: float
    noise: float
    foreground: float
    replay: float | None
    look: float | None
