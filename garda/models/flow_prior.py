"""The distribution of anatomy codes, learnt by flow matching (Lipman et al., ICLR 2023, section 4.1).

A velocity field v carries noise e to a code z along straight lines: at time t, x = (1 - t) e + t z and v(x, t) = z - e
(equations 20 to 23 with sigma_min = 0: optimal transport paths).
"""

import copy
import math
from collections.abc import Mapping

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from garda.core.config import Config
from garda.data import augment
from garda.data.augment import ImitatedGeometrySettings
from garda.data.dataset import Batch
from garda.data.task import Task
from garda.training import loop, sharding
from garda.training.device import Compute
from garda.training.loop import Stateful

TIME = 32  # length of the encoding of time
CONTEXT = 64  # length of what each block is told of time
GROUPS = 8  # of the group normalisation


class FlowPrior(nn.Module):
    """A small U-Net for the velocity, and the drawing of codes by it.

    >>> prior = FlowPrior(channels=2, width=8)
    >>> prior(torch.rand(3, 2, 4, 8), torch.rand(3)).shape
    torch.Size([3, 2, 4, 8])
    """

    def __init__(self, channels: int, width: int) -> None:
        """An untrained prior.

        Args:
            channels: of the code, whose sides are multiples of 4.
            width: channels of the first resolution, a multiple of 8; the two below it have twice as many.
        """
        super().__init__()
        self.channels = channels
        self.time = nn.Sequential(nn.Linear(TIME, CONTEXT), nn.SiLU(), nn.Linear(CONTEXT, CONTEXT))
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down_1 = _Residual(width, width)
        self.halve_1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.down_2 = _Residual(2 * width, 2 * width)
        self.halve_2 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.middle_1, self.middle_2 = _Residual(2 * width, 2 * width), _Residual(2 * width, 2 * width)
        self.up_2, self.up_1 = _Residual(4 * width, 2 * width), _Residual(3 * width, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The velocity, float32.

        Args:
            x: (B, channels, h, w), sides multiples of 4.
            time: (B,) in [0, 1].

        Returns:
            (B, channels, h, w).
        """
        rates = torch.exp(torch.linspace(0, math.log(200.0), TIME // 2, device=time.device))
        angle = time[:, None] * rates
        context = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        fine = self.down_1(self.first(x), context)
        coarse = self.down_2(self.halve_1(fine), context)
        deep = self.middle_2(self.middle_1(self.halve_2(coarse), context), context)
        up = self.up_2(torch.cat([F.interpolate(deep, scale_factor=2.0), coarse], dim=1), context)
        up = self.up_1(torch.cat([F.interpolate(up, scale_factor=2.0), fine], dim=1), context)
        return self.last(F.silu(up)).float()

    def draw(self, count: int, size: tuple[int, int], steps: int = 12) -> Tensor:
        """Codes from torch's global generator, by Heun's method.

        Args:
            count: number of codes.
            size: (h, w), multiples of 4.
            steps: of the integration from time 0 to 1.

        Returns:
            (count, channels, h, w) float32.
        """
        device = self.last.weight.device
        x = torch.randn(count, self.channels, *size).to(device)
        for step in range(steps):
            start, end = (torch.full((count,), (step + i) / steps, device=device) for i in (0, 1))
            velocity = self(x, start)
            if step < steps - 1:  # the field is not learnt at the very end, where Euler's step is as good
                velocity = (velocity + self(x + velocity / steps, end)) / 2
            x = x + velocity / steps
        return x


class _Residual(nn.Module):
    """Two convolutions beside a shortcut, told of the time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = _GroupNorm(GROUPS, inputs), _GroupNorm(GROUPS, outputs)
        self.convolution_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.convolution_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.context = nn.Linear(CONTEXT, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        inner = self.convolution_1(F.silu(self.norm_1(x))) + self.context(context)[:, :, None, None]
        return self.shortcut(x) + self.convolution_2(F.silu(self.norm_2(inner)))


class _GroupNorm(nn.GroupNorm):
    """Of contiguous features: on a CPU torch takes 13 times as long for channels-last ones in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


WARM_UP = 50  # steps over which the learning rate rises


class PriorTrainingSettings(Config):
    """How the prior learns the distribution of anatomy codes.

    Attributes:
        steps: number of steps.
        batch: codes a step.
        learning_rate: the highest; rises over 50 steps, falls to 0 by a cosine.
        average: steps over which weights are averaged.
        geometry: augmentation of the images whose codes are learnt.
    """

    steps: PositiveInt = 1000
    batch: int = Field(default=32, ge=2)
    learning_rate: PositiveFloat = 2e-3
    average: PositiveInt = 100
    geometry: ImitatedGeometrySettings = ImitatedGeometrySettings()


class FlowMatchingObjective:
    """Learn the distribution of the anatomy codes by flow matching (Lipman et al. 2023, equation 23)."""

    def __init__(
        self, task: Task, encoder: nn.Module, prior: FlowPrior, settings: PriorTrainingSettings, compute: Compute
    ) -> None:
        """Prepare the prior.

        Args:
            task: what is segmented.
            encoder: (B, C, H, W) images to (B, channels, h, w) codes; frozen.
            prior: untrained, of the codes' channels.
            settings: how to learn.
            compute: device and precision.
        """
        self._encoder = compute.prepare(encoder).eval()
        self._prior = compute.prepare(prior).train()
        self._average = AveragedModel(self._prior, multi_avg_fn=loop.ema(settings.average))
        self._optimizer = torch.optim.AdamW(self._prior.parameters(), lr=settings.learning_rate, fused=True)
        self._task, self._settings, self._compute = task, settings, compute

    @property
    def prior(self) -> FlowPrior:
        """The averaged prior."""
        return copy.deepcopy(self._average.module).eval().requires_grad_(False)  # type: ignore[return-value]

    def state(self) -> Mapping[str, Stateful]:
        """Prior, its average and the optimizer."""
        return {"prior": self._prior, "average": self._average, "optimizer": self._optimizer}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a batch of images; the loss is one number, detached."""
        settings, image = self._settings, self._compute.to_device(batch.image)
        motion = augment.draw_affine(len(image), settings.geometry, self._task.any_orientation, image.device)
        part = sharding.shard(len(image))
        with torch.no_grad(), self._compute.autocast():
            code = self._encoder(self._compute.to_device(augment.warp(image, motion)[part]))
        noise = torch.randn(len(image), *code.shape[1:])[part].to(code.device)
        time = torch.sigmoid(torch.randn(len(image))[part]).to(code.device)
        between = noise + (code - noise) * time[:, None, None, None]  # equation 22
        with self._compute.autocast():
            velocity = self._prior(self._compute.to_device(between), time)
        loss = F.mse_loss(velocity, code - noise)  # equation 23
        loop.cosine_lr(self._optimizer, settings.learning_rate, step, settings.steps, warm_up=WARM_UP)
        loop.backward_step(self._optimizer, loss)
        self._average.update_parameters(self._prior)
        return {"flow": loss.detach()}
