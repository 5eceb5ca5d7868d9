import json
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.errors import ConfigError, TrainingError
from garda.data.task import Task
from garda.models import unet
from garda.models.factorised import FactorisedGenerator, FactorisedSettings
from garda.models.features import SegmenterEncoder
from garda.models.generator import Anatomy, Generator
from garda.models.unet import SegmenterSettings
from garda.safety import attacks, audit, similarity
from garda.safety.attacks import References
from garda.safety.audit_report import AuditSettings
from garda.safety.patients import Patients, in_groups, patient_means
from garda.safety.similarity import Correlation, EmbeddingSpace, PixelSpace
from garda.training.device import Compute, ComputeSettings

SIDE = 32
TASK = Task(name="t", classes=("background", "thing"), size=(SIDE, SIDE))
PATCHES = TASK.model_copy(update={"fit": "patch", "any_orientation": True})
COMPUTE = Compute(ComputeSettings(accelerator="cpu", precision="32"))
SETTINGS = AuditSettings(generated=100, permutations=100, references=32, resolution=16)
ONE_PIXEL = SETTINGS.model_copy(update={"resolution": SIDE})


def people(count: int, seed: int, slices: int = 1, size: tuple[int, int] = (SIDE, SIDE)) -> list[Tensor]:
    """Patients of one population: smooth random fields in [0, 1], (slices, 1, H, W) each."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, slices, 1, 6, 6, generator=random).flatten(0, 1)
    fields = F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    return [*torch.sigmoid(2 * fields).unflatten(0, (count, slices))]


@cache
def embedding() -> nn.Module:
    torch.manual_seed(3)
    segmenter: BasicUNet = unet.build_segmenter(TASK, SegmenterSettings(widths=(8, 8, 8, 8, 8, 8)))
    return SegmenterEncoder(segmenter, 1).eval().requires_grad_(False)


class Decoder(Generator):
    """A code for each training slice, decoded (Bojanowski et al. 2018); draws the neighbourhood of those codes."""

    def __init__(self, slices: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.domains = ("a",)
        self.codes = nn.Parameter(torch.randn(len(slices), 16))
        self.layers = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, SIDE * SIDE), nn.Sigmoid())
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        for _ in range(300):
            loss = F.mse_loss(self.layers(self.codes).view_as(slices), slices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.loss = float(loss.detach())

    def add_domain(self, name: str) -> None:
        raise NotImplementedError

    def draw(self, count: int) -> Anatomy:
        return Anatomy(self.codes[torch.randint(len(self.codes), (count,))] + 0.2 * torch.randn(count, 16))

    def sample(self, anatomy: Anatomy, domains: Tensor) -> Tensor:
        return self.layers(anatomy.code).view(-1, 1, SIDE, SIDE)


@pytest.fixture(scope="module")
def memorised() -> Decoder:
    return Decoder(torch.cat(people(8, seed=1)))


@pytest.fixture(scope="module")
def control() -> Decoder:
    """It has learnt other patients of the same population."""
    return Decoder(torch.cat(people(8, seed=5)))


def run(generator: Generator, members, outsiders, settings=SETTINGS, seed=0, task=TASK, **more):
    return audit.audit(generator, 0, members, outsiders, embedding(), settings, COMPUTE, seed=seed, task=task, **more)


def by_attack(found) -> dict:
    return {(row.attack, row.calibrated): row for row in found.membership}


def test_a_generator_that_has_memorised_eight_slices_is_caught(memorised):
    assert memorised.loss < 1e-3
    found = run(memorised, people(8, seed=1), people(10, seed=2))
    for copies in found.copies:
        assert copies.share > 0.5 and copies.interval[0] > copies.chance and copies.patients == 8
    rows = by_attack(found)
    for row in rows.values():
        assert row.auc > 0.9 and row.interval[0] > 0.6, row
    assert rows.keys() == {(f"nearest_{space}", known) for space in ("pixel", "embedding") for known in (False, True)}
    assert found.outliers[0].space == "pixel" and found.outliers[0].count == 8
    assert len(found.findings) >= 7 and not found.passed
    assert found.findings[0].startswith("copies, pixel: ")
    assert any(line.startswith("membership, nearest_pixel, calibrated: AUC ") for line in found.findings)


def test_a_generator_that_has_never_seen_them_passes(control):
    assert control.loss < 1e-3
    found = run(control, people(8, seed=1), people(10, seed=2))
    assert found.findings == () and found.passed
    assert all(copies.share <= max(copies.chance, SETTINGS.share) for copies in found.copies)
    assert all(row.interval[0] < 0.6 for row in found.membership)


def test_two_patients_learnt_by_heart_among_twenty_stand_out(control):
    members, outsiders = people(20, seed=1), people(20, seed=2)
    found = run(Decoder(torch.cat([*members[:2], *people(6, seed=5)])), members, outsiders)
    assert [(row.space, row.count) for row in found.outliers] == [("pixel", 2), ("embedding", 2)]
    assert found.findings == (
        "outliers, pixel: generated images come nearer to 2 of 20 training patients than 20 others let expect, "
        "more than 0",
    )
    assert run(control, members, outsiders).findings == ()


def test_one_outlier_in_a_hundred_audits_and_margins_of_the_best_matched_slices():
    random = np.random.default_rng(0)
    counts = [attacks.find_outliers("pixel", random.normal(size=30), 20).count for _ in range(1000)]
    assert 0 < np.mean(np.array(counts) > 0) < 0.025
    assert attacks.find_outliers("pixel", np.array([9.0, 0, 0, 1, -1, 0.5, -0.5, 0.2, 0]), 2).count == 1
    found = attacks.margins(torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.9, 0.0, 0.2]), torch.tensor([0, 0, 1]), 2)
    assert found.tolist() == pytest.approx([np.arctanh(0.5), 0])
    nearer_still = attacks.margins(torch.tensor([0.999]), torch.tensor([0.96]), torch.tensor([0]), 1)
    assert nearer_still.tolist() == [0]


def test_equal_seeds_give_equal_figures_whatever_is_held_at_once(memorised):
    members, outsiders = people(6, seed=5, slices=2), people(6, seed=6, slices=3)
    state = torch.get_rng_state()
    first = run(memorised, members, outsiders, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert run(memorised, members, outsiders, SETTINGS.model_copy(update={"block": 1}), seed=4) == first
    assert run(memorised, members, outsiders, seed=5) != first
    drawn = audit.draw_images(memorised, 0, 100, seed=1)
    assert drawn.shape == (100, 1, SIDE, SIDE) and torch.equal(audit.draw_images(memorised, 0, 100, seed=1), drawn)


def test_too_few_outsiders_give_no_figure_and_that_is_said(memorised):
    found = run(memorised, people(8, seed=1), people(2, seed=2))
    assert found.copies == () and found.outliers == () and found.membership == ()
    assert found.no_figure == "2 patients never used in training, fewer than 5"
    assert found.findings == () and found.outsiders == 2
    strict = SETTINGS.model_copy(update={"without_figure": "finding"})
    assert run(memorised, people(3, seed=1), [], strict).findings == (
        "no figure: 3 training patients and 0 patients never used in training, fewer than 5",
    )


def test_an_audit_is_plain_values_counts_bytes_and_reads_patients_when_asked(memorised):
    class Folder(Sequence):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Tensor:
            return people(6, seed=2)[index]

    members, outsiders = people(8, seed=1, slices=2), people(6, seed=2)
    found = run(memorised, members, outsiders)
    assert run(memorised, members, Folder()) == found
    assert found.bytes_seen == 8 * 2 * SIDE * SIDE * 2
    assert found.bytes_kept == 4 * sum(p.numel() for p in memorised.parameters())
    text = json.dumps(found.model_dump(mode="json"))
    assert type(found).model_validate(json.loads(text)) == found
    assert '"domain": "a"' in text


def test_patches_learnt_by_heart_are_caught_wherever_they_were_cut():
    members = [*people(4, seed=1, size=(40, 48)), *people(4, seed=2, size=(48, 40))]
    outsiders = people(6, seed=3, size=(48, 48))
    learnt = Decoder(torch.cat([volume[..., 3 : 3 + SIDE, 5 : 5 + SIDE] for volume in members]))
    found = run(learnt, members, outsiders, task=PATCHES)
    assert min(copies.share for copies in found.copies) > 0.2
    assert {line.split(":")[0] for line in found.findings} >= {"copies, pixel", "membership, nearest_pixel"}


def test_encoders_that_redraw_their_own_patients_better_are_caught():
    members, outsiders = people(8, seed=1), people(8, seed=2)
    torch.manual_seed(0)
    network = FactorisedSettings(code=1, appearance=3, widths=(8, 8, 16), prior_width=8)  # 64 numbers an anatomy
    generator = FactorisedGenerator(1, 2, (SIDE, SIDE), network).eval()
    generator.add_domain("a")
    generator.add_domain("b")
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    images = torch.cat(members)
    for _ in range(60):
        features, _ = generator.decoder(generator.anatomy(images))
        loss = F.mse_loss(generator.branches[0](features, generator.appearance(images)), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = by_attack(run(generator, members, outsiders))
    assert rows["reconstruction", False].auc > 0.9
    assert rows["reconstruction", True].interval[0] > 0.5
    scores = attacks.mean_scores(
        Patients(outsiders, members), attacks.reconstruction(generator, 0), TASK.size, 1, COMPUTE
    )
    swapped = attacks.infer_membership("reconstruction", scores, 8, seed=0)
    assert swapped.auc == pytest.approx(1 - rows["reconstruction", False].auc)


def test_a_generator_of_one_domain_has_no_reference():
    generator = FactorisedGenerator(1, 2, (SIDE, SIDE), FactorisedSettings(code=2, widths=(4, 8), prior_width=8))
    generator.add_domain("a")
    rows = by_attack(run(generator, people(5, seed=1), people(5, seed=2)))
    assert ("reconstruction", False) in rows and ("reconstruction", True) not in rows


def test_what_cannot_be_audited_is_refused(memorised, monkeypatch):
    with pytest.raises(ConfigError, match=r"audit.shift: of 32 pixels, 14 are left beside shifts of 9"):
        run(memorised, people(5, seed=1), people(5, seed=2), SETTINGS.model_copy(update={"shift": 9}))
    with pytest.raises(ValueError, match=r"at least one slice, got \(0, 1, 32, 32\)"):
        run(memorised, [*people(5, seed=1), torch.empty(0, 1, SIDE, SIDE)], people(5, seed=2))
    monkeypatch.setattr(
        Decoder, "sample", lambda own, anatomy, domains: own.layers(anatomy.code).view(-1, 1, 32, 32) / 0
    )
    with pytest.raises(TrainingError, match="generator of a: draws numbers that are not finite"):
        run(memorised, people(5, seed=1), people(5, seed=2))


def test_correlation_is_that_of_the_definition():
    slices, templates = torch.rand(2, 3, 12, 15), torch.rand(3, 3, 8, 9)
    centred = [template - template.mean(dim=(1, 2), keepdim=True) for template in templates]
    expected = torch.full((3, 2), -1.0)
    for t, b, row, column in np.ndindex(3, 2, 5, 7):
        window = slices[b, :, row : row + 8, column : column + 9]
        window = window - window.mean(dim=(1, 2), keepdim=True)
        expected[t, b] = max(expected[t, b], (window * centred[t]).sum() / window.norm() / centred[t].norm())
    assert torch.allclose(Correlation(slices, (8, 9))(templates), expected, atol=1e-5)


@pytest.mark.parametrize("shift", [(0, 0), (4, -4), (-3, 2)])
def test_a_shifted_copy_of_other_contrast_is_a_copy(shift):
    (whole,) = people(1, seed=3, size=(SIDE + 8, SIDE + 8))
    row, column = 4 + shift[0], 4 + shift[1]
    original, copy = whole[..., 4:-4, 4:-4], 0.2 + 0.5 * whole[..., row : row + SIDE, column : column + SIDE]
    space = PixelSpace(TASK, ONE_PIXEL, COMPUTE)
    assert space.against(copy)(original).item() == pytest.approx(1, abs=1e-5)
    nothing = PixelSpace(TASK, ONE_PIXEL.model_copy(update={"shift": 0}), COMPUTE)
    assert (nothing.against(copy)(original).item() > 1 - 1e-4) == (shift == (0, 0))
    (long,) = people(1, seed=3, size=(SIDE + 16, SIDE))  # a shift beyond the settings is none
    assert space.against(long[..., :SIDE, :])(long[..., 10 : 10 + SIDE, :]).item() < 0.98


def test_a_turned_and_mirrored_patch_is_found_anywhere_in_a_larger_slice():
    (whole,) = people(1, seed=3, size=(50, 70))
    patch = torch.rot90(whole[..., 11 : 11 + SIDE, 20 : 20 + SIDE], dims=(2, 3)).flip(3)
    assert PixelSpace(PATCHES, ONE_PIXEL, COMPUTE).against(patch)(whole).item() == pytest.approx(1, abs=1e-5)
    upright = PATCHES.model_copy(update={"any_orientation": False})
    assert PixelSpace(upright, ONE_PIXEL, COMPUTE).against(patch)(whole).item() < 0.98
    window = whole[..., 16 : 16 + SIDE, 38 : 38 + SIDE].flip(2)  # one that the embedding's grid of windows holds
    generated = torch.cat(people(20, seed=9))
    space = EmbeddingSpace(embedding(), generated, PATCHES, SETTINGS, COMPUTE)
    assert space.against(window)(whole).item() == pytest.approx(1, abs=1e-5)
    assert space.against(generated[:1])(whole).item() < 0.98


def test_flat_images_are_near_nothing():
    flat, image = torch.full((1, 1, SIDE, SIDE), 0.3), people(1, seed=1)[0]
    correlation = Correlation(torch.cat([flat, image]), (24, 24))
    assert torch.equal(correlation(flat[..., :24, :24]), torch.zeros(1, 2))
    assert correlation(image[..., 4:28, 4:28])[0].tolist() == pytest.approx([0, 1], abs=1e-5)


def test_there_are_eight_orientations_and_windows_cover_a_slice_to_its_end():
    image = torch.rand(1, 1, 4, 4)
    turned = similarity.turn(image, True)
    assert len({tuple(part.flatten().tolist()) for part in turned}) == 8 and torch.equal(turned[0], image)
    assert len(similarity.turn(image, False)) == 1
    slices = torch.arange(2 * 10 * 7, dtype=torch.float32).view(2, 1, 10, 7)
    cut = similarity.windows(slices, (4, 4))
    assert cut.shape == (2, 6, 1, 4, 4)
    assert set(cut.flatten().tolist()) == set(slices.flatten().tolist())
    assert torch.equal(similarity.windows(slices, (10, 7))[:, 0], slices)


def test_groups_hold_slices_of_one_shape_and_know_their_patients():
    patients = [torch.zeros(3, 1, 8, 8), torch.ones(2, 1, 8, 8), torch.ones(1, 1, 4, 4)]
    groups = [(owners.tolist(), tuple(slices.shape)) for owners, slices in in_groups(patients, 4 * 64)]
    assert groups == [([0, 0, 0, 1], (4, 1, 8, 8)), ([1], (1, 1, 8, 8)), ([2], (1, 1, 4, 4))]
    assert len([*in_groups(patients, 1)]) == 6
    means = patient_means(torch.tensor([1.0, 2.0, 5.0, 6.0]), torch.tensor([0, 0, 1, 0]), 2)
    assert means.tolist() == [3, 5]


@pytest.mark.parametrize("members, outsiders", [(10, 10), (40, 10), (10, 40)])
def test_chance_gives_one_percent_copies_whatever_the_numbers(members, outsiders):
    random = np.random.default_rng(0)
    sides = [
        torch.from_numpy(random.random((members + outsiders, 2000))).split([members, outsiders]) for _ in range(30)
    ]
    shares = [attacks.share_of_copies(*side, random) for side in sides]
    assert np.mean(shares) == pytest.approx(0.01, abs=0.002)


def test_equal_distributions_have_an_auc_of_one_half_and_the_interval_covers_it():
    random = np.random.default_rng(0)
    pairs = [(random.normal(size=20), random.normal(size=20)) for _ in range(400)]
    assert np.mean([attacks.area(*pair) for pair in pairs]) == pytest.approx(0.5, abs=0.02)
    covered = [low <= 0.5 <= high for low, high in (attacks.area_interval(*pair, seed=0) for pair in pairs[:40])]
    assert 0.8 < np.mean(covered) <= 1
    same = random.normal(size=30)
    assert attacks.area(same, same) == 0.5 and attacks.area(same + 100, same) == 1


def test_the_true_positive_rate_needs_a_hundred_outsiders():
    scores = np.concatenate([np.linspace(0.5, 2.5, 20), np.linspace(0, 1, 100)])
    enough = attacks.infer_membership("nearest_pixel", scores, 20, seed=0)
    assert enough.tpr_at_1_percent_fpr == pytest.approx(0.75) and enough.outsiders == 100
    assert attacks.infer_membership("nearest_pixel", scores[:-1], 20, seed=0).tpr_at_1_percent_fpr is None


def test_a_slice_is_never_its_own_patients_reference():
    twins = [volume.repeat(2, 1, 1, 1) for volume in people(6, seed=2)]
    patients = Patients(twins[:3], [*twins[3:], twins[0]])  # the last is also a member, and so each has a copy
    references = References(patients, 7, TASK, seed=0)
    found = references.nearness(PixelSpace(TASK, ONE_PIXEL, COMPUTE), patients, torch.device("cpu"))
    assert references.images.shape == (7, 1, SIDE, SIDE) and found.shape == (14,)
    found = patient_means(found, torch.arange(7).repeat_interleave(2), 7)
    assert found[[0, 6]].tolist() == pytest.approx([1, 1], abs=1e-5) and (found[1:6] < 0.98).all()


def test_a_reference_does_not_tell_outsiders_who_resemble_each_other_from_members():
    members = people(8, seed=1)
    (alike,) = people(1, seed=2)
    outsiders = [(0.7 * alike + 0.3 * volume) for volume in people(8, seed=3)]
    patients = Patients([*members[:4], *outsiders[:4]], [*members[4:], *outsiders[4:]])
    references = References(patients, 16, TASK, seed=0)
    found = references.nearness(PixelSpace(TASK, SETTINGS, COMPUTE), patients, torch.device("cpu"))
    assert attacks.area(found[4:8], found[:4]) == 1  # patients differ in how near others lie, ...
    assert 0.25 < attacks.area(found[:8], found[8:]) < 0.75  # ... the sides do not
