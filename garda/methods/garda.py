"""garda: several networks that learnt one source, for each site the one that reads it best, and what a lesson adds.

The method follows generative appearance replay (Chen et al., Medical Image Analysis 89, 102924, 2023; published form:
:mod:`garda.methods.garda_paper`) in what survives a site: networks, and a generator in place of images. Its rule is
that no site ends worse than it would have without it:

- *Experts*: three networks learn the labelled source: from its images as they are (``plain``), under random curves
  (``curves``), and under a mixture of kinds (``mixture``, the segmenter). They err differently.
- *Reading*: of the experts, their mean and, where files have no spacing, enlarged images, a target is read as agrees
  most with itself over random views (:mod:`garda.models.reading`); the source as its held-out labels say. Where the
  experts contradict each other far more than at the source, agreement says nothing: the target is read as a domain
  that has not been met.
- *Lesson*: where even that reading is not sure of itself, an adapter of its network (:mod:`garda.models.adapter`)
  learns what the experts say on average over views (:mod:`garda.models.lesson`); it is kept if it agrees better with
  itself than that reading does, on slices from which it has not learnt.
- *Generator*: draws labelled anatomies of the source in the style of any domain met
  (:mod:`garda.models.factorised`); the gate and the audit look at it.

Whatever is learnt later, a domain's reading stays as it was to the bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.config import Config
from garda.core.seeds import derive_seed
from garda.data.dataset import Slices
from garda.data.preprocess import Grid
from garda.data.randomise import RandomisationSettings
from garda.methods.knowledge import Knowledge
from garda.methods.replay_method import ReplayMethod
from garda.models import adapter, reading
from garda.models.ensemble import Ensemble
from garda.models.lesson import LessonObjective, LessonSettings
from garda.models.objectives import SupervisedTrainingSettings
from garda.models.reading import Candidate, ChoiceSettings, Reading
from garda.training import distributed, loop
from garda.training.cache import Stage
from garda.training.loop import Phase

NAMES = ("plain", "curves", "mixture")  # of the experts, in the order of a reading's mask
MASK, ZOOM = "reading.experts", "reading.zoom"  # a domain's state
PLAUSIBLE, CONSENSUS = "plausible.shares", "plausible.consensus"  # of the source
NEAR = 0.05  # of agreement, within which experts teach together with the best
PATCHES = 24  # by which a reading is chosen where slices are larger than the network's input
FIDELITY = 64  # replayed anatomies by which replay is measured
MOST_ZOOM = 16.0  # either way
WINDOW = 2.0  # sides of the patches by which a reading is chosen, by the task's


class GardaSettings(Config):
    """How the experts differ, and how one of them is chosen.

    Attributes:
        curves: randomisation of the expert of that name.
        choice: how a domain's reading is chosen.
        lesson: how an adapter learns a target that no reading is sure of.
    """

    curves: RandomisationSettings = RandomisationSettings(probability=0.8, regions=0.0)
    choice: ChoiceSettings = ChoiceSettings()
    lesson: LessonSettings = LessonSettings()


class Garda(ReplayMethod[GardaSettings]):
    """Experts of one source, and for every domain met the reading that was chosen for it.

    Domain state: ``reading.experts``, (3,) uint8, which experts' mean reads the domain; ``reading.zoom``, how far
    images are enlarged; an adapter, where a lesson has been kept; of the source, ``plausible.shares`` too, see
    :func:`garda.models.reading.plausible_shares`, and ``plausible.consensus``, a number. A domain that has not been met
    is read by the mixture. In packages of format 1 and 2 a domain's state is an adapter of the one network alone.
    """

    Settings = GardaSettings

    def check(self) -> None:
        """Refuse what does not fit the task, and an adapter that is more than a domain may keep."""
        super().check()
        size = sum(tensor.nbytes for tensor in adapter.adapter_state_dict(self.build_segmenter()).values())
        remedy = "widen the inner layers, or narrow the first two"
        self.check_state("segmenter.widths", "a domain's adapter", size, remedy)

    @property
    def source_settings(self) -> SupervisedTrainingSettings:
        """The mixture's."""
        chosen = self.shared.source.randomisation or RandomisationSettings()
        return self.shared.source.model_copy(update={"randomisation": chosen})

    def learn_more(
        self, plain: BasicUNet, domain: str, slices: Slices, held_out: Slices | None, stage: Stage
    ) -> Knowledge:
        """The mixture and the generator, the other experts, and the source's own reading."""
        knowledge = super().learn_more(plain, domain, slices, held_out, stage)
        settings = self.shared.source.model_copy(update={"randomisation": self.settings.curves})
        curves = self.train_segmenter("curves", settings, slices, held_out, stage, plain)
        phase = stage("choice")
        shown = slices.batch(0, min(len(slices), self.settings.choice.slices), derive_seed(phase.seed, "shares"))
        labelled = held_out or slices
        asked = labelled.batch(0, min(len(labelled), self.settings.choice.slices), derive_seed(phase.seed, "own"))
        if shown.label is None or asked.label is None:
            raise ValueError("the source needs labels")
        knowledge = replace(knowledge, experts={"plain": plain, "curves": curves})
        target = F.one_hot(asked.label, len(self.task.classes)).movedim(3, 1).float()
        image, known = asked.image, self._experts(knowledge)
        readings = distributed.on_rank_zero(lambda: reading.score(known, image, target, self.compute))
        chosen = reading.choose(readings, self.settings.choice)
        numbers = {each.name: each.agreement for each in readings} | {
            "fidelity of replay": self._fidelity(knowledge, phase)
        }
        alike = distributed.on_rank_zero(lambda: reading.consensus(known, image, self.compute))
        phase.note({"chosen": chosen.name, "by": "held-out labels", **numbers, "consensus": alike})
        plausible = {PLAUSIBLE: reading.plausible_shares(shown.label, len(self.task.classes))}
        state = {**plausible, CONSENSUS: torch.tensor(alike), **_state(chosen)}
        return replace(knowledge, domain_state={domain: state})

    def adapt(self, knowledge: Knowledge, domain: str, slices: Slices, stage: Stage) -> Knowledge:
        """The target's style, then the reading of its images."""
        if knowledge.generator is None:
            raise TypeError("garda adapts a generator")
        generator = self.trainer.learn_style(knowledge.generator, domain, slices, stage, knowledge.source_segmenter)
        generator.round_style()
        lesson = self.settings.lesson
        readings, chosen, by, alike = self.choose_reading(knowledge, slices, stage)
        candidates = {each: _state(each) for each in readings}
        numbers = {each.name: each.agreement for each in readings if each.plausible}
        if by == "views" and chosen.agreement < lesson.enough and lesson.steps:
            shown, apart = slices.hold_out()
            student, own = self._teach(knowledge, chosen, readings, shown, stage)
            before, after = self._judge(knowledge, chosen, student, own, apart, stage)
            taught = replace(after, experts=(student,), lesson=True)
            candidates[taught] = {**_state(taught), **own}
            numbers |= {f"{chosen.name}, held out": before.agreement, f"{taught.name}, held out": after.agreement}
            if after.plausible and after.agreement >= before.agreement + lesson.gain:
                chosen = taught
        stage("choice").note({"chosen": chosen.name, "by": by, **numbers, "consensus": alike})
        stage.offer(
            [
                Candidate(each.name, own, {"agreement": each.agreement, "plausible": each.plausible}, each is chosen)
                for each, own in candidates.items()
            ]
        )
        return knowledge.with_domain(domain, candidates[chosen], generator=generator)

    def network_for(self, knowledge: Knowledge, domain: str) -> nn.Module:
        """The experts of the domain's reading; the mixture where it has not been met."""
        state = knowledge.domain_state.get(domain, {})
        mask, own = state.get(MASK), {name: state[name] for name in state.keys() - {MASK, ZOOM, PLAUSIBLE, CONSENSUS}}
        if mask is None:
            return adapter.apply_adapter(knowledge.segmenter, own)  # format 1 and 2, or nothing
        network = self._network(knowledge, [name for name, used in zip(NAMES, mask.tolist(), strict=True) if used])
        return adapter.apply_adapter(network, own) if own else network

    def zoom_for(self, knowledge: Knowledge, domain: str) -> float:
        """The zoom of the domain's reading."""
        own = knowledge.domain_state.get(domain, {})
        return round(float(own[ZOOM]), 4) if ZOOM in own else 1.0

    def check_kept(self, knowledge: Knowledge, domain: str) -> None:
        """A reading of at least one expert at a zoom that there is, beside what every method looks at."""
        state = knowledge.domain_state.get(domain, {})
        if knowledge.experts:  # format 3
            mask, zoom = state[MASK], float(state[ZOOM])
            if mask.shape != (len(NAMES),) or not bool(mask.any()):
                raise ValueError("its reading names no expert")
            if not 1 / MOST_ZOOM <= zoom <= MOST_ZOOM:
                raise ValueError(f"its zoom is {zoom:g}")
        super().check_kept(knowledge, domain)

    def _fidelity(self, knowledge: Knowledge, phase: Phase) -> float:
        """Dice of the plain network on replayed source images against the labels that they carry."""
        torch.manual_seed(derive_seed(phase.seed, "fidelity"))
        image, label = self.draw_pool(knowledge, FIDELITY).batch(FIDELITY, 0)
        wanted = F.one_hot(label.argmax(dim=1), label.shape[1]).movedim(3, 1).float().cpu()
        plain = {"plain": self.compute.prepare(knowledge.experts["plain"]).eval()}
        return reading.score(plain, image.cpu(), wanted, self.compute)[0].agreement

    def _experts(self, knowledge: Knowledge) -> dict[str, nn.Module]:
        found = {**knowledge.experts, "mixture": knowledge.segmenter}
        return {name: self.compute.prepare(found[name]).eval() for name in NAMES if name in found}

    def _network(self, knowledge: Knowledge, names: Sequence[str]) -> nn.Module:
        """One expert, or the mean of several."""
        experts = self._experts(knowledge)
        return experts[names[0]] if len(names) == 1 else Ensemble(experts[name] for name in names).eval()

    def _teach(
        self, knowledge: Knowledge, start: Reading, readings: Sequence[Reading], slices: Slices, stage: Stage
    ) -> tuple[str, dict[str, Tensor]]:
        """The best reading's expert, or the best single one, and the adapter that a lesson makes for it."""
        settings, phase, experts = self.settings.lesson, stage("adapter"), self._experts(knowledge)
        alone = [each for each in readings if each.plausible and each.zoom == 1 and len(each.experts) == 1]
        first = start if len(start.experts) == 1 else max(alone, key=lambda each: each.agreement, default=start)
        near = [each.experts[0] for each in alone if each.agreement > max(e.agreement for e in alone) - NEAR]
        teachers, student = near or list(start.experts), first.experts[0] if len(first.experts) == 1 else "mixture"

        def build() -> LessonObjective:
            teacher = self._network(knowledge, teachers)
            image = self._show(slices, settings.pool, start.zoom, derive_seed(phase.seed, "pool"))
            return LessonObjective(experts[student], teacher, image, self.task, settings, self.compute)

        return student, loop.fit(build, lambda step: None, settings.steps, phase).own

    def _judge(
        self,
        knowledge: Knowledge,
        start: Reading,
        student: str,
        own: Mapping[str, Tensor],
        slices: Slices,
        stage: Stage,
    ) -> tuple[Reading, Reading]:
        """What speaks for the reading that a lesson began with, and for what it made."""
        taught = adapter.apply_adapter(self._experts(knowledge)[student], own)
        both = {"before": self._network(knowledge, start.experts), "after": self.compute.prepare(taught).eval()}
        before, after, _ = self._compare(knowledge, both, start.zoom, slices, stage)
        return before, after

    def _show(self, slices: Slices, count: int, zoom: float, seed: int) -> Tensor:
        """(B, C, H, W) slices, or patches of the task's size, at a zoom."""
        if self.task.fit == "patch":
            image = slices.batch(0, count, seed, 1 / zoom).image
            return F.interpolate(image, self.task.size, mode="bilinear", antialias=True) if zoom != 1 else image
        image = slices.batch(0, min(count, len(slices)), seed).image
        rows, columns = self.task.size
        return Grid(self.task.size, (round(rows * zoom), round(columns * zoom)), self.task.size).to_network(image)

    def _read(self, knowledge: Knowledge, slices: Slices, stage: Stage) -> list[Reading]:
        """Every reading of a target's slices: all at zoom 1, then the best at the others, where there are others."""
        experts = self._experts(knowledge)
        found = self._compare(knowledge, experts, 1.0, slices, stage)
        best = reading.choose(found, self.settings.choice)
        for zoom in self.settings.choice.zooms if self.task.spacing_mm is None else ():
            some = self._compare(knowledge, {name: experts[name] for name in best.experts}, zoom, slices, stage)
            found += [each for each in some if each.experts == best.experts]
        return found

    def choose_reading(
        self, knowledge: Knowledge, slices: Slices, stage: Stage
    ) -> tuple[list[Reading], Reading, str, float]:
        """Every reading of a target, the chosen one, what says so, and the consensus of the experts."""
        readings = self._read(knowledge, slices, stage)
        alike = self._consensus(knowledge, readings, slices, stage)
        return readings, *self._choose(knowledge, readings, alike), alike

    def _choose(self, knowledge: Knowledge, readings: Sequence[Reading], alike: float) -> tuple[Reading, str]:
        """A target's reading, and what says so: its agreement over views, or that the experts contradict each other."""
        known = knowledge.domain_state.get(knowledge.domains[0], {}).get(CONSENSUS)
        unmet = next(each for each in readings if each.experts == NAMES[-1:] and each.zoom == 1)
        if known is not None and alike < self.settings.choice.contradicted * float(known) and unmet.plausible:
            return unmet, "contradiction"
        return reading.choose(readings, self.settings.choice), "views"

    def _consensus(self, knowledge: Knowledge, readings: Sequence[Reading], slices: Slices, stage: Stage) -> float:
        """Of the experts that are plausible at zoom 1."""
        plausible = {
            each.experts[0] for each in readings if each.plausible and each.zoom == 1 and len(each.experts) == 1
        }
        experts = {name: network for name, network in self._experts(knowledge).items() if name in plausible}
        image = self._views(slices, stage)
        return distributed.on_rank_zero(lambda: reading.consensus(experts, image, self.compute))

    def _views(self, slices: Slices, stage: Stage) -> Tensor:
        """(B, C, H, W) slices by which a reading is chosen."""
        patches = self.task.fit == "patch"
        count = min(len(slices), PATCHES if patches else self.settings.choice.slices)
        return slices.batch(0, count, derive_seed(stage("choice").seed, "views"), WINDOW if patches else 1.0).image

    def _compare(
        self, knowledge: Knowledge, experts: Mapping[str, nn.Module], zoom: float, slices: Slices, stage: Stage
    ) -> list[Reading]:
        settings, seed, image = self.settings.choice, stage("choice").seed, self._views(slices, stage)
        shares = knowledge.domain_state.get(knowledge.domains[0], {}).get(PLAUSIBLE)

        def compare() -> list[Reading]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # the same views of all
                return reading.compare(experts, image, zoom, shares, settings, self.task, self.compute)

        return distributed.on_rank_zero(compare)


def _state(chosen: Reading) -> dict[str, Tensor]:
    mask = torch.tensor([name in chosen.experts for name in NAMES], dtype=torch.uint8)
    return {MASK: mask, ZOOM: torch.tensor(chosen.zoom)}
