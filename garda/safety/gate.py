"""The gate: whether what a site brings is learnt, and whether what was learnt is passed on.

Before learning it looks at the incoming images (:func:`inspect_incoming`), after it at the result
(:func:`inspect_learnt`). No label of a target is read. Every limit is a number of the labelled source
(:class:`~garda.safety.limits.SourceBaseline`) times or plus a fixed share of
:class:`~garda.safety.limits.GateSettings`, the same for all tasks.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from garda.core.seeds import derive_seed
from garda.data.dataset import Slices
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models.replay import Replay
from garda.safety import limits, quality
from garda.safety.limits import Check, GateSettings, SourceBaseline, Views

APPEARANCE = {  # measured without a network: the name of number and limit, and what it is
    "blank": "share of blank slices",
    "greys": "share of pixels in a label map's greys",
    "noise": "share of noise",
}


def measure_baseline(
    method: Method, knowledge: Knowledge, slices: Slices, settings: GateSettings, seed: int
) -> SourceBaseline:
    """Measure the source, at the end of its stage.

    Args:
        method: has learnt it.
        knowledge: of the source stage.
        slices: the source's training slices; their labels are not looked at.
        settings: how many slices.
        seed: of the run.
    """
    image = _sample(slices, settings, seed)
    network = method.slice_network_for(knowledge, knowledge.domains[0])
    with _seeded(seed, "source"):
        views = _view(method, knowledge, knowledge.source_segmenter, image)
        drawn = _draw(method, knowledge, settings).batch(settings.sample, 0) if knowledge.generator else None
    foreground = quality.foreground(_answer(method, network, image))
    replay = look = None
    if drawn is not None:
        replay = quality.agreement(_answer(method, network, drawn[0]), drawn[1].cpu())
        look = quality.grey_distance(drawn[0].cpu(), image)
    appearance = _appearance(method, image)
    return SourceBaseline(views=views, **appearance, foreground=foreground, replay=replay, look=look)


def inspect_incoming(
    method: Method,
    knowledge: Knowledge,
    domain: str,
    slices: Slices,
    known: SourceBaseline,
    settings: GateSettings,
    seed: int,
) -> list[Check]:
    """Look at a target's images before anything is learnt from them.

    The source segmenter looks, whatever the method has learnt since: it is what ``known`` was measured with.

    Args:
        method: is to learn the target.
        knowledge: of the stage before.
        domain: the target's name.
        slices: its training slices, without labels.
        known: the source.
        settings: the limits.
        seed: of the run.
    """
    image = _sample(slices, settings, seed)
    with _seeded(seed, "incoming", domain):
        views = _view(method, knowledge, knowledge.source_segmenter, image)
    checks = [limits.at_least("slices", domain, len(slices), settings.slices, "slices")]
    for name, value in _appearance(method, image).items():
        highest = limits.above(getattr(known, name), getattr(settings, name))
        checks.append(limits.at_most(name, domain, value, highest, APPEARANCE[name]))
    # what is not recognised may be learnt: that is what learning is for, and it is looked at again after it
    return [*checks, _recognition(domain, views, known, settings, hold=True)]


def inspect_learnt(
    method: Method,
    before: Knowledge,
    after: Knowledge,
    slices: Slices,
    known: SourceBaseline,
    settings: GateSettings,
    seed: int,
) -> list[Check]:
    """Look at what a target's stage has learnt.

    Args:
        method: has learnt it.
        before: knowledge of the stage before.
        after: knowledge of the stage; its last domain is the target.
        slices: the target's training slices, without labels.
        known: the source.
        settings: the limits.
        seed: of the run.

    Returns:
        Without a generator there is no replay to look at, and the checks that need it are left out. Where a weight is
        not finite, nothing else is looked at.
    """
    broken = _count_broken(after)
    finite = limits.at_most("finite", after.domains[-1], broken, (0, 0), "number of tensors that are not finite")
    if broken:
        return [finite]
    image = _sample(slices, settings, seed)
    return [
        finite,
        *_inspect_memory(method, before, after, settings, seed),
        *_inspect_replay(method, after, image, known, settings, seed),
        *_inspect_answers(method, after, image, known, settings, seed),
    ]


def _inspect_memory(
    method: Method, before: Knowledge, after: Knowledge, settings: GateSettings, seed: int
) -> Iterator[Check]:
    """For each domain seen before: how far the new segmenter answers its replayed images as the old one did.

    Networks that are equal to the bit agree wholly, and nothing is replayed for them: where a method leaves old domains
    alone, the twentieth stage takes no longer than the second.
    """
    if before.generator is None:
        return
    pool = None
    for domain in filter(before.generator.domains.__contains__, before.domains):
        dice = 1.0
        if not method.reads_equally(before, after, domain):
            if pool is None:
                with _seeded(seed, "memory"):
                    pool = _draw(method, before, settings)
            with _seeded(seed, "memory", domain):
                image, _ = pool.batch(settings.sample, before.generator.domains.index(domain))
            old, new = (_answer(method, method.network_for(stage, domain), image) for stage in (before, after))
            dice = quality.agreement(new, old)
        yield limits.at_least("agreement", domain, dice, settings.agreement, "Dice of new and old answers on replay")


def _inspect_replay(
    method: Method, after: Knowledge, image: Tensor, known: SourceBaseline, settings: GateSettings, seed: int
) -> Iterator[Check]:
    """Whether the new style is the target's and shows different anatomies whose labels the new segmenter finds."""
    domain, generator = after.domains[-1], after.generator
    if generator is None or domain not in generator.domains or known.replay is None or known.look is None:
        return
    with _seeded(seed, "replay"):
        pool = _draw(method, after, settings)
    shown = []
    for index in (generator.domains.index(domain), 0):  # the same anatomies in both styles
        with _seeded(seed, "looks"):
            shown.append(pool.batch(settings.sample, index))
    (new, label), (source, _) = shown
    dice = quality.agreement(_answer(method, method.network_for(after, domain), new), label.cpu())
    far, diversity = quality.grey_distance(new.cpu(), image), quality.diversity(new.cpu())
    least, most = limits.share_of(known.replay, settings.replay), limits.above(known.look, settings.style)
    spread = limits.share_of(quality.diversity(source.cpu()), settings.diversity)
    yield limits.at_least("replay", domain, dice, least, "Dice on labelled replay")
    yield limits.at_most("style", domain, far, most, "distance of drawn greys from the real ones")
    yield limits.at_least("diversity", domain, diversity, spread, "diversity of drawn images")


def _inspect_answers(
    method: Method, after: Knowledge, image: Tensor, known: SourceBaseline, settings: GateSettings, seed: int
) -> Iterator[Check]:
    """Whether what the new segmenter says of the target's images is sure, steady, and about as much as it should be."""
    domain = after.domains[-1]
    network = method.slice_network_for(after, domain)
    with _seeded(seed, "answers", domain):
        views = _view(method, after, network, image)
    yield _recognition(domain, views, known, settings)
    found = quality.foreground(_answer(method, network, image))
    ratio = math.exp(abs(math.log((found + 1e-4) / (known.foreground + 1e-4))))
    yield limits.at_most("foreground", domain, ratio, settings.foreground, "ratio of foreground to the source's")


def _recognition(domain: str, views: Views, known: SourceBaseline, settings: GateSettings, hold: bool = False) -> Check:
    aided = views.agreed is not None and known.views.agreed is not None
    lowest = settings.recognition if aided else limits.share_of(settings.unaided, settings.recognition)
    lowest = (lowest[0], -math.inf) if hold else lowest
    what = "recognition of the images (1 for the source's)"
    return limits.at_least("recognition", domain, views.relative(known.views), lowest, what)


def _appearance(method: Method, image: Tensor) -> dict[str, float]:
    blank, greys = quality.blank(image).float().mean(), quality.few_greys(image, len(method.task.classes))
    return {"blank": float(blank), "greys": greys, "noise": quality.roughness(image)}


def _view(method: Method, knowledge: Knowledge, network: nn.Module, image: Tensor) -> Views:
    generator = None if knowledge.generator is None else method.compute.prepare(knowledge.generator).eval()
    return quality.view(_ready(method, network), generator, image, method.task, method.compute)


def _answer(method: Method, network: nn.Module, image: Tensor) -> Tensor:
    return quality.answer(_ready(method, network), image, method.compute)


def _sample(slices: Slices, settings: GateSettings, seed: int) -> Tensor:
    """(B, C, H, W) of a domain's slices, alike for all checks."""
    return slices.batch(0, settings.sample, derive_seed(seed, "gate")).image


def _draw(method: Method, knowledge: Knowledge, settings: GateSettings) -> Replay:
    """Anatomies to replay, from torch's global generator."""
    if knowledge.generator is None:
        raise TypeError("replay needs a generator")
    return Replay(knowledge.generator, _ready(method, knowledge.source_segmenter), settings.sample, method.compute)


def _ready(method: Method, network: nn.Module) -> nn.Module:
    return method.compute.prepare(network).eval()


def _count_broken(knowledge: Knowledge) -> int:
    """Tensors with a value that is not finite, of all that is kept."""
    networks = filter(None, (knowledge.segmenter, *knowledge.experts.values(), knowledge.generator))
    states = [network.state_dict() for network in networks] + [*knowledge.domain_state.values()]
    return sum(not bool(torch.isfinite(tensor).all()) for state in states for tensor in state.values())


@contextmanager
def _seeded(seed: int, *names: str) -> Iterator[None]:
    """Torch's global generator seeded for one purpose, and afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "gate", *names))
        yield
