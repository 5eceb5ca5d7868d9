"""When the source has been learnt: what held-out labels say, and the rule that follows from it."""

import torch
from monai.metrics import compute_dice
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.config import Config
from garda.data import randomise
from garda.data.dataset import Slices
from garda.data.randomise import RandomisationSettings
from garda.training import distributed
from garda.training.device import Compute

MOST = 64  # held-out slices that are looked at
PART = 16  # slices computed at once


class StoppingSettings(Config):
    """When training ends before its last step, where labels are held out.

    Attributes:
        every: steps between two looks.
        least: steps before which training does not end.
        patience: steps without a rise after which it ends.
        rise: of Dice, the least that counts.
    """

    every: PositiveInt = 50
    least: PositiveInt = 200
    patience: PositiveInt = 100
    rise: NonNegativeFloat = 0.004


class HeldOut(nn.Module):
    """Held-out slices as they are and under each kind of randomisation, and a network's Dice on them, step by step.

    The kinds are drawn once, so that two looks differ by the network alone. What has been measured is its state.

    Attributes:
        measured: (step, Dice) of every look.
    """

    def __init__(
        self,
        slices: Slices,
        classes: int,
        randomisation: RandomisationSettings | None,
        settings: StoppingSettings,
        seed: int,
        compute: Compute,
    ) -> None:
        """Draw what is looked at.

        Args:
            slices: labelled; at most ``MOST`` of them are taken.
            classes: K, the background included.
            randomisation: what training is under; None for none.
            settings: the rule.
            seed: of what is taken, and of the kinds.
            compute: device and precision.
        """
        super().__init__()
        taken = slices.batch(0, min(len(slices), MOST), seed)
        if taken.label is None:
            raise ValueError("HeldOut needs labels")
        shares = F.one_hot(taken.label, classes).movedim(3, 1).float()
        self._images, self._label = [taken.image], shares
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if randomisation is not None and randomisation.probability:
                self._images.append(randomise.randomise_appearance(taken.image, randomisation))
            if randomisation is not None and randomisation.regions:
                self._images.append(randomise.recontrast(taken.image, shares, randomisation.parts))
        self._settings, self._compute = settings, compute
        self.measured: list[tuple[int, float]] = []

    def get_extra_state(self) -> list[tuple[int, float]]:
        """What a checkpoint holds of it."""
        return self.measured

    def set_extra_state(self, state: list[tuple[int, float]]) -> None:
        """Take up what :meth:`get_extra_state` gave."""
        self.measured = [(int(step), float(dice)) for step, dice in state]

    def look(self, network: nn.Module, step: int) -> None:
        """Measure a network in evaluation mode after ``step`` steps, where it is time to."""
        if step % self._settings.every == 0:
            self.measured.append((step, distributed.on_rank_zero(lambda: self._dice(network))))

    @property
    def stopped(self) -> bool:
        """Whether Dice has stopped rising.

        >>> rule = StoppingSettings(every=50, least=100, patience=100, rise=0.01)
        >>> has_stopped([(50, 0.7), (100, 0.8), (150, 0.805), (200, 0.809)], rule)
        True
        >>> has_stopped([(50, 0.7), (100, 0.8), (150, 0.805), (200, 0.815)], rule)
        False
        """
        return has_stopped(self.measured, self._settings)

    @torch.no_grad()
    def _dice(self, network: nn.Module) -> float:
        found = [float(self._dice_of(network, images)) for images in self._images]
        return sum(found) / len(found)

    def _dice_of(self, network: nn.Module, images: Tensor) -> Tensor:
        """Dice of the decisions on all slices, the mean over foreground classes."""
        answers = []
        for part in images.split(PART):
            with self._compute.autocast():
                answers.append(network(self._compute.to_device(part)).argmax(dim=1).cpu())
        decided = F.one_hot(torch.cat(answers), self._label.shape[1]).movedim(3, 1)
        # slices side by side are one image: a slice without a class says nothing of it alone
        found, wanted = (each.movedim(1, 0).flatten(1)[None].float() for each in (decided, self._label))
        return compute_dice(found, wanted, include_background=False).nanmean()


def has_stopped(measured: list[tuple[int, float]], settings: StoppingSettings) -> bool:
    """Whether the best Dice of the last ``patience`` steps is not above the best before by ``rise``."""
    if not measured or measured[-1][0] < settings.least:
        return False
    since = measured[-1][0] - settings.patience
    before = [dice for step, dice in measured if step <= since]
    return bool(before) and max(dice for step, dice in measured if step > since) < max(before) + settings.rise
