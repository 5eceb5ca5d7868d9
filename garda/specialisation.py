"""A domain's own share of the segmenter: normalisation and first layers, beside a trunk that all domains share.

What a scanner does to an image lies in a network's first layers more than in its last (Shirokikh et al., "First U-Net
layers contain more domain specific information than the last ones", DART 2020); normalisation for each domain is that
of Chang et al. (CVPR 2019, domain-specific batch normalisation). Since the trunk never changes after the source, a
domain's network stays as it was to the bit, whatever is learnt after it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from monai.losses import DiceLoss
from monai.networks.nets import BasicUNet
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from garda import parallel, whole_batch
from garda.augment import (
    AppearanceSettings,
    GeometrySettings,
    RandomisationSettings,
    change_appearance,
    draw_motion,
    move_image,
    randomise_appearance,
)
from garda.compute import Compute
from garda.config import Config
from garda.generators.base import Anatomy, Generator
from garda.slices import Batch
from garda.task import Task
from garda.training import Stateful, averaging, descend, set_rate

STEM = ("conv_0.", "down_1.")  # the layers before the second halving


def own_names(segmenter: BasicUNet) -> list[str]:
    """Names, in its state, of what a domain keeps of a segmenter: first layers, and all normalisation."""
    norms = [name for name, module in segmenter.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return [
        name
        for name in segmenter.state_dict()
        if not name.endswith("num_batches_tracked") and (name.startswith(STEM) or name.rpartition(".")[0] in norms)
    ]


def read_own(segmenter: BasicUNet) -> dict[str, Tensor]:
    """A copy of a domain's own share: weights as float16, running statistics as float32, on the CPU."""
    state = segmenter.state_dict()
    return {
        name: state[name].detach().cpu().to(torch.float32 if "running" in name else torch.float16, copy=True)
        for name in own_names(segmenter)
    }


def specialise(segmenter: BasicUNet, own: Mapping[str, Tensor]) -> BasicUNet:
    """A copy of ``segmenter`` with a domain's own share in place of the common one."""
    network = copy.deepcopy(segmenter)
    network.load_state_dict({**network.state_dict(), **own})
    return network


def free_own(segmenter: BasicUNet) -> BasicUNet:
    """Let a domain's own share learn and nothing else; in place."""
    own = set(own_names(segmenter))
    for name, parameter in segmenter.named_parameters():
        parameter.requires_grad_(name in own)
    return segmenter


class StudentRandomisation(RandomisationSettings):
    """How far the student's images are randomised; see :class:`garda.augment.RandomisationSettings`."""

    probability: float = Field(default=0.5, ge=0, le=1)


class TargetLessonSettings(Config):
    """How a segmenter learns an unlabelled target.

    Attributes:
        steps: number of steps.
        batch: replayed images a step, and as many real ones.
        learning_rate: the highest, of AdamW; falls to 0 by a cosine.
        candidates: how many times the averaged share is put aside, at equal distances, the last step included;
            among several, label-free scores choose.
        average: steps over which the weights are averaged that answer for real images and that are kept.
        anatomies: size of the pool from which replayed anatomies are taken.
        replay: weight of the lesson from replayed images.
        real: weight of the lesson from real images.
        geometry: augmentation of image and answer.
        randomisation: of the images that the student sees.
        appearance: plain augmentation, after it.
    """

    steps: PositiveInt = 150
    batch: int = Field(default=16, ge=2)
    learning_rate: PositiveFloat = 1e-3
    candidates: PositiveInt = 1
    average: PositiveInt = 33
    anatomies: PositiveInt = 512
    replay: NonNegativeFloat = 1.0
    real: NonNegativeFloat = 1.0
    geometry: GeometrySettings = GeometrySettings()
    randomisation: StudentRandomisation = StudentRandomisation()
    appearance: AppearanceSettings = AppearanceSettings()


class Replay:
    """A pool of anatomies with their labels, drawn once, and images of them in any domain's look."""

    def __init__(self, generator: Generator, teacher: nn.Module, count: int, compute: Compute, batch: int = 64) -> None:
        """Draw the pool from torch's global generator.

        Args:
            generator: draws anatomies.
            teacher: answers for anatomies in the source's look where the generator knows no labels.
            count: size of the pool.
            compute: device and precision.
            batch: anatomies drawn at once.
        """
        self.generator, self._compute = compute.prepare(generator).eval().requires_grad_(False), compute
        self._parts: list[Anatomy] = []
        labels: list[Tensor] = []
        with torch.no_grad(), compute.autocast():
            for start in range(0, count, batch):
                part = generator.draw(min(batch, count - start))
                known = generator.labels(part)
                if known is None:
                    source = torch.zeros(len(part.code), dtype=torch.long)
                    known = torch.softmax(teacher(generator.sample(part, source)).float(), dim=1)
                self._parts.append(part)
                labels.append(known.float())
        self._codes = torch.cat([part.code for part in self._parts])
        self._labels = torch.cat(labels)

    def batch(self, size: int, domain: int) -> tuple[Tensor, Tensor]:
        """Random members of the pool in a domain's look: (size, C, H, W) in [0, 1], (size, K, H, W) probabilities."""
        chosen = torch.randint(len(self._codes), (size,))
        fresh = [torch.randn(size, *noise.shape[1:]).to(noise.device) for noise in self._parts[0].noise]
        with torch.no_grad(), self._compute.autocast():
            image = self.generator.sample(Anatomy(self._codes[chosen], tuple(fresh)), torch.full((size,), domain))
        return image.float(), self._labels[chosen]


class Shares:
    """Shares of a segmenter that were put aside while it learnt, by step; part of a checkpoint."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, Tensor]] = {}

    def put(self, step: int, own: dict[str, Tensor]) -> None:
        """Put one aside."""
        self.by_step[step] = own

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """All of them."""
        return self.by_step

    def load_state_dict(self, state_dict: dict[int, dict[str, Tensor]]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.by_step = dict(state_dict)


class FromTarget:
    """Learn an unlabelled target from both that can be had: replayed images with labels, and its real images.

    Replayed anatomies in the target's look carry their labels. For real images the student's own average answers, on
    the unchanged image (Tarvainen and Valpola, NeurIPS 2017). The student sees both kinds moved and randomised.

    Normalisation keeps the running statistics of the source's training: how much of an image is object or background
    differs between sites as well as the scanner does, and statistics of the target's images take the one for the other
    (docs/ablation.md). Its scales and shifts learn.
    """

    def __init__(
        self,
        student: BasicUNet,
        replay: Replay,
        task: Task,
        lesson: TargetLessonSettings,
        compute: Compute,
    ) -> None:
        """Prepare the student, of which a domain's own share learns.

        Args:
            student: what learning begins with; left as it is.
            replay: its generator has the target as its last domain.
            task: what is segmented.
            lesson: how to learn.
            compute: device and precision.
        """
        self._student = free_own(compute.prepare(copy.deepcopy(student)).eval())
        self._average = AveragedModel(self._student, multi_avg_fn=averaging(lesson.average), use_buffers=True)
        self._average.eval().requires_grad_(False)
        self._average.update_parameters(self._student)  # the first update copies
        own = [parameter for parameter in self._student.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(own, lr=lesson.learning_rate, weight_decay=1e-4, fused=True)
        self._loss = DiceLoss(include_background=False)
        self._task, self._lesson, self._compute = task, lesson, compute
        self.replay, self.shares = replay, Shares()

    def state(self) -> Mapping[str, Stateful]:
        """Student, its average, the optimizer and what was put aside; the pool follows from the stage's seed."""
        networks = {"student": self._student, "average": self._average}
        return {**networks, "optimizer": self._optimizer, "shares": self.shares}

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One step on a batch of the target's images."""
        lesson, real = self._lesson, self._compute.place(batch.image)
        replayed, label = self.replay.batch(lesson.batch, len(self.replay.generator.domains) - 1)
        image, answer = torch.cat([replayed, real]), torch.cat([label, self._answer(real)])
        motion = draw_motion(len(image), lesson.geometry, self._task.any_orientation, image.device)
        image, answer = move_image(image, motion), move_image(answer, motion)
        image = change_appearance(randomise_appearance(image, lesson.randomisation), lesson.appearance)
        part = whole_batch.part(len(replayed), len(real))
        set_rate(self._optimizer, lesson.learning_rate, step, lesson.steps)
        with self._compute.autocast():
            logits = self._student(self._compute.place(image[part])).float()
        answer, count = answer[part], len(replayed) // parallel.size()
        losses = {
            "replay": self._compare(logits[:count], answer[:count]),
            "real": self._compare(logits[count:], answer[count:]),
        }
        descend(self._optimizer, lesson.replay * losses["replay"] + lesson.real * losses["real"])
        self._average.update_parameters(self._student)
        if (step + 1) * lesson.candidates // lesson.steps > step * lesson.candidates // lesson.steps:
            self.shares.put(step + 1, read_own(self._average.module))
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _answer(self, image: Tensor) -> Tensor:
        """(B, K, H, W) probabilities for real images."""
        with self._compute.autocast():
            return torch.softmax(self._average(image).float(), dim=1)

    def _compare(self, logits: Tensor, answer: Tensor) -> Tensor:
        """Cross entropy and soft Dice against soft answers."""
        return F.cross_entropy(logits, answer) + self._loss(torch.softmax(logits, dim=1), answer)
