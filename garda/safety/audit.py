"""The audit of one domain of a generator, while the domain's images are still there."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from garda.core.errors import TrainingError
from garda.core.seeds import derive_seed
from garda.data.task import Task
from garda.models.generator import Generator
from garda.safety import attacks, audit_report
from garda.safety.attacks import References, Score
from garda.safety.audit_report import Attack, Audit, AuditSettings, Copies, Membership, Outliers
from garda.safety.patients import Array, Patients, patient_means
from garda.safety.similarity import Embedding, EmbeddingSpace, PixelSpace, Space
from garda.training.device import Compute

DRAWN_AT_ONCE = 64  # part of what a seed gives
BYTES = 2  # of a value of a slice, float16, see garda.data.dataset


def audit(
    generator: Generator,
    domain: int,
    members: Sequence[Tensor],
    outsiders: Sequence[Tensor],
    embed: Embedding,
    settings: AuditSettings,
    compute: Compute,
    *,
    seed: int,
    task: Task,
) -> Audit:
    """Copies of training patients among generated images, membership of patients, and bytes.

    Patients are looked at one after another, several times; a sequence may read them when asked. Held at once are a
    group of slices, the generated images, a number for each slice and for each pair of a generated image and a patient.
    Members and outsiders come to the network's grid in one way, slices without a label kept or left out in both.

    Args:
        generator: moved to the device and left in evaluation mode.
        domain: index into the generator's domains.
        members: (D, C, H, W) float32 in [0, 1] of each training patient, on the network's grid.
        outsiders: the same of patients that no training has used, of the same site.
        embed: (B, C, H, W) at the task's size to (B, F) or (B, F, h, w); a module is moved to the device.
        settings: how many images are drawn, and the thresholds.
        compute: the device; all is computed in float32.
        seed: of all randomness; equal seeds give equal figures.
        task: gives size, fit and orientations.

    Raises:
        ConfigError: the settings' shift does not fit the task's size.
        TrainingError: the generator draws numbers that are not finite.
    """
    patients = Patients(members, outsiders)
    pixels = PixelSpace(task, settings, compute)
    reason = _too_few(patients, settings)
    compared: list[tuple[Copies, Outliers, list[Membership]]] = []
    redrawn: list[Membership] = []
    compute.prepare(generator).eval()
    if reason is None:
        images = draw_images(generator, domain, settings.generated, derive_seed(seed, "generated"))
        spaces = (pixels, EmbeddingSpace(embed, images, task, settings, compute))
        references = References(patients, settings.references, task, seed)
        compared = [_compare(space, images, patients, references, settings, seed) for space in spaces]
        mean = partial(attacks.mean_scores, patients, size=task.size, block=settings.block, compute=compute)
        redrawn = _reconstruct(generator, domain, mean, len(members), seed)
    copies, outliers = tuple(found[0] for found in compared), tuple(found[1] for found in compared)
    membership = [*itertools.chain.from_iterable(found[2] for found in compared), *redrawn]
    return Audit(
        domain=generator.domains[domain],
        members=len(members),
        outsiders=len(outsiders),
        copies=copies,
        outliers=outliers,
        membership=tuple(sorted(membership, key=lambda found: -found.interval[0])),
        no_figure=reason,
        bytes_kept=sum(tensor.nbytes for tensor in generator.kept_state().values()),
        bytes_seen=BYTES * sum(volume.numel() for volume in members),
        findings=audit_report.find(copies, outliers, membership, reason, settings),
    )


@torch.no_grad()
def draw_images(generator: Generator, domain: int, count: int, seed: int) -> Tensor:
    """``count`` images of a domain, (count, C, H, W) in [0, 1] on its device; torch's global generator is left alone.

    Raises:
        TrainingError: a number is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        domains = torch.full((count,), domain, dtype=torch.long).split(DRAWN_AT_ONCE)
        images = torch.cat([generator.sample(generator.draw(len(part)), part) for part in domains])
    if not torch.isfinite(images).all():
        where = f"generator of {generator.domains[domain]}"
        raise TrainingError(where, "draws numbers that are not finite", "learn this stage again")
    return images


def _too_few(patients: Patients, settings: AuditSettings) -> str | None:
    counts = {"training patients": len(patients.members), "patients never used in training": len(patients.outsiders)}
    short = [f"{count} {who}" for who, count in counts.items() if count < settings.fewest]
    return f"{' and '.join(short)}, fewer than {settings.fewest}" if short else None


def _compare(
    space: Space, images: Tensor, patients: Patients, references: References, settings: AuditSettings, seed: int
) -> tuple[Copies, Outliers, list[Membership]]:
    """Nearest neighbours: of generated images among patients, and of patients among generated images."""
    count, members = len(patients), len(patients.members)
    nearest = torch.full((count, len(images)), -1.0)
    groups, values = [], []
    for some, nearness in space.similarities(images, patients):
        nearest.scatter_reduce_(0, some[:, None].expand(-1, len(images)), nearness.T, "amax")
        groups.append(some)
        values.append(nearness.amax(dim=0))
    owners, generated = torch.cat(groups), torch.cat(values)
    reference = references.nearness(space, patients, images.device)
    scores = patient_means(generated, owners, count)
    found = _infer_both(space.attack, scores, patient_means(reference, owners, count), members, seed)
    margins = attacks.margins(generated, reference, owners, count)
    copies = attacks.detect_copies(space.name, nearest, members, settings, seed)
    return copies, attacks.find_outliers(space.name, margins, members), found


def _reconstruct(
    generator: Generator, domain: int, mean: Callable[[Score], Array], members: int, seed: int
) -> list[Membership]:
    """By the generator's own encoders, where it has them; calibrated where another domain has been seen."""
    score, other = attacks.reconstruction(generator, domain), attacks.reference_domain(generator, domain)
    if score is None:
        return []
    reference = None if other is None else attacks.reconstruction(generator, other)
    return _infer_both("reconstruction", mean(score), None if reference is None else mean(reference), members, seed)


def _infer_both(attack: Attack, scores: Array, reference: Array | None, members: int, seed: int) -> list[Membership]:
    """Membership from patients' scores, and, where there is a reference's, from what is left without them."""
    found = [attacks.infer_membership(attack, scores, members, seed)]
    if reference is not None:
        found.append(attacks.infer_membership(attack, scores - reference, members, seed, calibrated=True))
    return found
