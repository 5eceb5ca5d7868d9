"""FDA with replay, the cheapest replay of appearance: the source's generator as it is, and a stored style per target.

A style is what Yang and Soatto, "FDA: Fourier domain adaptation for semantic segmentation", CVPR 2020, exchange between
images: the amplitudes of the lowest frequencies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from garda.core.config import Config
from garda.core.seeds import derive_seed
from garda.data.dataset import Slices
from garda.methods.knowledge import Knowledge
from garda.methods.replay_method import ReplayMethod
from garda.models.generator import Anatomy, Generator
from garda.models.objectives import DistillationSettings
from garda.models.replay import Replay
from garda.training.cache import Stage


class FDAReplaySettings(Config):
    """How a target's style is measured, and how the segmenter learns it.

    Attributes:
        beta: half the window of exchanged frequencies, as a share of the image's sides.
        batches: batches of the target's slices over which the style is averaged, of ``replay.batch`` slices each.
        anatomies: size of the pool from which replayed anatomies are taken.
        replay: how the segmenter learns a target.
    """

    beta: float = Field(default=0.05, gt=0, lt=0.5)
    batches: PositiveInt = 50
    anatomies: PositiveInt = 512
    replay: DistillationSettings = DistillationSettings()


class FDAReplay(ReplayMethod[FDAReplaySettings]):
    """One segmenter, which learns from replayed source anatomies in the stored styles of all domains met.

    Domain state of a target: ``amplitude``, (C, 2a + 1, b + 1) float32, see :func:`low_amplitude`.

    The objective is that of `garda_paper`: the source segmenter's soft prediction for the image in the source's style.
    The generator's own labels would do too where it has them. But the prediction is for the very image that was drawn
    and exists for every generator; with the published one, both methods then differ in little but their styles.
    """

    Settings = FDAReplaySettings

    def check(self) -> None:
        """Refuse what does not fit the generator, and a style that is more than a domain may keep."""
        super().check()
        with torch.device("meta"):
            style = low_amplitude(torch.empty(1, self.task.channels, *self.task.size), self.settings.beta)
        self.check_state("fda_replay.beta", "a style", style.nbytes, "lower it")

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """The target's style from its images, then the segmenter from replayed images in all stored styles."""
        phase, settings = stage("segmenter"), self.settings
        seed = derive_seed(phase.seed, "look")
        images = (slices.batch(step, settings.replay.batch, seed).image for step in range(settings.batches))
        known = knowledge.with_domain(domain, {"amplitude": mean_amplitude(images, settings.beta)})

        def show() -> StyleBank:
            styles = {name: state["amplitude"] for name, state in known.domain_state.items()}
            return StyleBank(self.draw_pool(known, settings.anatomies), known.domains, styles)

        return replace(known, segmenter=self.distil(known, show, settings.replay, phase))


class StyleBank(Generator):
    """Shows what is replayed in stored styles; an anatomy's code is its own image in the source's style."""

    def __init__(self, replay: Replay, domains: tuple[str, ...], styles: Mapping[str, Tensor]) -> None:
        """A bank that shows ``domains``.

        Args:
            replay: draws images in the source's style.
            domains: names, in order.
            styles: amplitudes (C, 2a + 1, b + 1) by domain; a domain without any is shown in the source's style.
        """
        super().__init__()
        self.domains, self._replay, self._styles = domains, replay, styles

    def add_domain(self, name: str) -> None:
        """Show one more domain."""
        self.domains = (*self.domains, name)

    def draw(self, count: int) -> Anatomy:
        """Images in the source's style."""
        return Anatomy(self._replay.batch(count, 0)[0])

    def sample(self, anatomy: Anatomy, domains: Tensor) -> Tensor:
        """The images with the amplitudes of their domains, cut to [0, 1]; the source's unchanged."""
        image = anatomy.code.clone()
        for domain in domains.unique().tolist():
            if (style := self._styles.get(self.domains[domain])) is not None:
                chosen = (domains == domain).to(image.device)
                image[chosen] = exchange_amplitude(image[chosen], style.to(image.device)).clamp(0, 1)
        return image


def mean_amplitude(images: Iterable[Tensor], beta: float) -> Tensor:
    """(C, 2a + 1, b + 1) geometric mean over batches (B, C, H, W) of :func:`low_amplitude`, on the CPU.

    The mean is that of log(1 + amplitude), in which a black image counts as dark and not as minus infinity.
    """
    logarithms = torch.cat([low_amplitude(image, beta).log1p().cpu() for image in images])
    return logarithms.mean(dim=0).expm1()


def low_amplitude(image: Tensor, beta: float) -> Tensor:
    """Amplitudes of the frequencies that FDA exchanges (section 3.1).

    Args:
        image: (B, C, H, W) float32.
        beta: half the window as a share of the sides, below 0.5.

    Returns:
        (B, C, 2a + 1, b + 1) float32, a and b the whole parts of beta H and beta W: rows of the frequencies -a to a,
        columns of 0 to b. Those of -b to -1 mirror them, since the image is real.
    """
    rows, columns = (int(beta * side) for side in image.shape[-2:])
    return torch.fft.rfft2(image)[..., _rows(rows), : columns + 1].abs()


def exchange_amplitude(image: Tensor, amplitude: Tensor) -> Tensor:
    """The image with the lowest frequencies' amplitudes replaced and their phases kept (FDA, section 3.1).

    Args:
        image: (B, C, H, W) float32.
        amplitude: (C, 2a + 1, b + 1), or with B in front, as from :func:`low_amplitude`.

    Returns:
        ``image``'s shape, not cut to any range.
    """
    spectrum = torch.fft.rfft2(image)
    window = (..., _rows(amplitude.shape[-2] // 2), slice(amplitude.shape[-1]))
    phase = spectrum[window].angle()
    spectrum[window] = torch.polar(amplitude.expand_as(phase).contiguous(), phase)
    return torch.fft.irfft2(spectrum, s=image.shape[-2:])


def _rows(count: int) -> Tensor:
    """Places of the frequencies from -``count`` to ``count``."""
    return torch.arange(-count, count + 1)
