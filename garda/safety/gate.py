"""The gate: whether what a site brings is learnt, and whether what was learnt is passed on.

Before learning it looks at the incoming images (:func:`inspect_incoming`), after it at the result
(:func:`inspect_learnt`). No label of a target is read. Every limit is a number of the labelled source
(:class:`~garda.safety.limits.SourceBaseline`) times or plus a fixed share of
:class:`~garda.safety.limits.GateSettings`, the same for all tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor

from garda.core.seeds import derive_seed
from garda.data.dataset import Slices
from garda.methods.base import Method
from garda.methods.knowledge import Knowledge
from garda.models.replay import Replay
from garda.safety import quality
from garda.safety.limits import Check, GateSettings, SourceBaseline, Views, above, at_least, at_most, share_of


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
    source, image = knowledge.domains[0], _sample(slices, settings, seed)
    network = _ready(method, method.network_for(knowledge, source))
    with _seeded(seed, "source"):
        views = _view(method, knowledge, knowledge.source_segmenter, image)
        drawn = _draw(method, knowledge, settings).batch(settings.sample, 0) if knowledge.generator else None
    return SourceBaseline(
        views=views,
        blank=float(quality.blank(image).float().mean()),
        greys=quality.few_greys(image, len(method.task.classes)),
        noise=quality.roughness(image),
        foreground=quality.foreground(quality.answer(network, image, method.compute)),
        replay=None
        if drawn is None
        else quality.agreement(quality.answer(network, drawn[0], method.compute), drawn[1].cpu()),
        look=None if drawn is None else quality.grey_distance(drawn[0].cpu(), image),
    )


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

    The stage-0 segmenter looks, whatever the method has learnt since: it is what ``known`` was measured with.

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
    share_blank = float(quality.blank(image).float().mean())
    greys = quality.few_greys(image, len(method.task.classes))
    return [
        at_least("slices", domain, len(slices), (float(settings.slices[0]), float(settings.slices[1])), "slices"),
        at_most("blank", domain, share_blank, above(known.blank, settings.blank), "share of blank slices"),
        at_most("greys", domain, greys, above(known.greys, settings.greys), "share of pixels in a label map's greys"),
        at_most("noise", domain, quality.roughness(image), above(known.noise, settings.noise), "share of noise"),
        _recognition(domain, views, known, settings),
    ]


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
    domain = after.domains[-1]
    broken = _count_broken(after)
    finite = at_most("finite", domain, broken, (0, 0), "number of tensors that are not finite")
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
    """For each domain met before: how far the new segmenter answers its replayed images as the old one did.

    Networks that are equal to the bit agree wholly, and nothing is replayed for them: where a method leaves old domains
    alone, the twentieth stage takes no longer than the second.
    """
    if before.generator is None:
        return
    pool = None
    for domain in filter(before.generator.domains.__contains__, before.domains):
        if method.reads_equally(before, after, domain):
            yield at_least("agreement", domain, 1.0, settings.agreement, "Dice of new and old answers on replay")
            continue
        if pool is None:
            with _seeded(seed, "memory"):
                pool = _draw(method, before, settings)
        with _seeded(seed, "memory", domain):
            image, _ = pool.batch(settings.sample, before.generator.domains.index(domain))
        old, new = (
            quality.answer(_ready(method, method.network_for(k, domain)), image, method.compute)
            for k in (before, after)
        )
        dice = quality.agreement(new, old)
        yield at_least("agreement", domain, dice, settings.agreement, "Dice of new and old answers on replay")


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
    dice = quality.agreement(
        quality.answer(_ready(method, method.network_for(after, domain)), new, method.compute), label.cpu()
    )
    new, source = new.cpu(), source.cpu()
    yield at_least("replay", domain, dice, share_of(known.replay, settings.replay), "Dice on labelled replay")
    far = quality.grey_distance(new, image)
    yield at_most("style", domain, far, above(known.look, settings.style), "distance of drawn greys from the real ones")
    spread = share_of(quality.diversity(source), settings.diversity)
    yield at_least("diversity", domain, quality.diversity(new), spread, "diversity of drawn images")


def _inspect_answers(
    method: Method, after: Knowledge, image: Tensor, known: SourceBaseline, settings: GateSettings, seed: int
) -> Iterator[Check]:
    """Whether what the new segmenter says of the target's images is sure, steady, and about as much as it should be."""
    domain = after.domains[-1]
    network = _ready(method, method.network_for(after, domain))
    with _seeded(seed, "answers", domain):
        views = _view(method, after, network, image)
    yield _recognition(domain, views, known, settings)
    ratio = math.log(
        (quality.foreground(quality.answer(network, image, method.compute)) + 1e-4) / (known.foreground + 1e-4)
    )
    yield at_most(
        "foreground", domain, math.exp(abs(ratio)), settings.foreground, "ratio of foreground to the source's"
    )


def _recognition(domain: str, views: Views, known: SourceBaseline, settings: GateSettings) -> Check:
    aided = views.agreed is not None and known.views.agreed is not None
    limits = settings.recognition if aided else share_of(settings.unaided, settings.recognition)
    what = "recognition of the images (1 for the source's)"
    return at_least("recognition", domain, views.relative(known.views), limits, what)


def _view(method: Method, knowledge: Knowledge, network: BasicUNet, image: Tensor) -> Views:
    generator = knowledge.generator
    if generator is not None:
        generator = method.compute.prepare(generator).eval()
    return quality.view(_ready(method, network), generator, image, method.task, method.compute)


def _sample(slices: Slices, settings: GateSettings, seed: int) -> Tensor:
    """(B, C, H, W) of a domain's slices, alike for all checks."""
    return slices.batch(0, settings.sample, derive_seed(seed, "gate")).image


def _draw(method: Method, knowledge: Knowledge, settings: GateSettings) -> Replay:
    """Anatomies to replay, from torch's global generator."""
    if knowledge.generator is None:
        raise TypeError("replay needs a generator")
    return Replay(knowledge.generator, _ready(method, knowledge.source_segmenter), settings.sample, method.compute)


def _ready(method: Method, network: BasicUNet) -> BasicUNet:
    return method.compute.prepare(network).eval()


def _count_broken(knowledge: Knowledge) -> int:
    """Tensors with a value that is not finite, of all that is kept."""
    networks = [knowledge.segmenter, *([knowledge.generator] if knowledge.generator is not None else [])]
    kept = [tensor for network in networks for tensor in network.state_dict().values()]
    kept += [tensor for named in knowledge.domain_state.values() for tensor in named.values()]
    return sum(not bool(torch.isfinite(tensor).all()) for tensor in kept)


@contextmanager
def _seeded(seed: int, *names: str) -> Iterator[None]:
    """Torch's global generator seeded for one purpose, and afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "gate", *names))
        yield
