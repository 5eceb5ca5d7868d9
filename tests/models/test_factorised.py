from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from garda.core.errors import ConfigError
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.models import factorised_training, unet
from garda.models.factorised import FactorisedGenerator, FactorisedSettings
from garda.models.factorised_training import (
    FactorisedTrainer,
    GeneratorSettings,
    ReconstructionLoss,
    ReconstructionLossSettings,
)
from garda.models.flow_prior import FlowPrior
from garda.models.generator import Anatomy
from garda.models.unet import SegmenterSettings
from garda.training.cache import Cache, Stage
from garda.training.device import Compute, ComputeSettings
from garda.training.loop import Phase

TASK = Task(name="t", classes=("background", "disc"), size=(16, 16))
COMPUTE = Compute(ComputeSettings(accelerator="cpu", precision="32"))
NETWORK = FactorisedSettings(code=2, appearance=3, widths=(8, 16), prior_width=16)
FEW = {"steps": 3, "batch": 4}
RECIPE = GeneratorSettings.model_validate(
    {"network": NETWORK, "reconstruction": FEW, "prior": FEW, "style": FEW | {"estimate": 2}}
)


class Discs(Slices):
    """A bright disc on black at random places, or a dark one on white."""

    def __init__(self, *, inverted: bool) -> None:
        self.inverted = inverted

    def batch(self, step: int, size: int, seed: int) -> Batch:
        random = torch.Generator().manual_seed(step * 1000 + seed % 1000)
        centre = torch.rand(size, 2, 1, 1, generator=random) * 6 + 5
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        inside = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < 12).float().unsqueeze(1)
        image = 0.1 + 0.8 * (1 - inside if self.inverted else inside)
        return Batch(image, None if self.inverted else inside[:, 0].long())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def stages(folder: Path, cache: Cache | None = None) -> Stage:
    return Stage(lambda part: Phase(part, folder / part, seed=1), cache or Cache())


def teacher():
    torch.manual_seed(3)
    return unet.build_segmenter(TASK, SegmenterSettings(widths=(4, 4, 4, 4, 4, 4))).eval().requires_grad_(False)


def recipe(**changes) -> FactorisedTrainer:
    return FactorisedTrainer(TASK, RECIPE.model_copy(update=changes), COMPUTE)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="4 resolutions and the prior's two do not halve 48 x 16 pixels evenly"):
        FactorisedGenerator(1, 2, (48, 16), FactorisedSettings(widths=(8, 8, 8, 8)))


def test_a_new_look_leaves_everything_else_as_it_was(tmp_path):
    source = recipe().learn_source("a", Discs(inverted=False), stages(tmp_path / "a"), teacher())
    before = copy.deepcopy(source.state_dict())
    later = recipe().learn_style(source, "b", Discs(inverted=True), stages(tmp_path / "b"), teacher())
    assert source.domains == ("a",) and later.domains == ("a", "b")
    for name, value in source.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in later.state_dict().items():
        if name not in ("mean", "factor", "noise") and not name.startswith("branches.1"):
            assert torch.equal(value, before[name]), name
    assert torch.equal(later.mean[0], source.mean[0]) and torch.equal(later.factor[0], source.factor[0])
    assert not torch.equal(later.mean[1], later.mean[0])


def test_what_the_source_taught_is_shared_between_runs(tmp_path):
    cache = Cache(tmp_path / "shelf", {"seed": 1})
    first = recipe().learn_source("a", Discs(inverted=False), stages(tmp_path / "a", cache), teacher())
    again = recipe().learn_source("a", Discs(inverted=False), stages(tmp_path / "b", cache), teacher())
    assert not (tmp_path / "b").exists()
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_discs_come_back_with_their_labels_and_a_target_in_its_own_look(tmp_path):
    lessons = {
        "reconstruction": RECIPE.reconstruction.model_copy(update={"steps": 250, "batch": 16, "learning_rate": 5e-3}),
        "style": RECIPE.style.model_copy(update={"steps": 80, "batch": 16, "estimate": 4, "learning_rate": 5e-3}),
    }
    learner = recipe(**lessons)
    source = learner.learn_source("a", Discs(inverted=False), stages(tmp_path / "a"), teacher())
    both = learner.learn_style(source, "b", Discs(inverted=True), stages(tmp_path / "b"), teacher())
    batch = Discs(inverted=False).batch(7, 32, 5)
    with torch.no_grad():
        code = both.anatomy(batch.image)
        noise = torch.randn(32, 3, 1, 1), torch.randn(32, 1, 16, 16)
        anatomy = Anatomy(code, noise)
        labels = both.labels(anatomy)[:, 1]
        overlap = 2 * (labels * batch.label).sum() / (labels + batch.label).sum()
        bright = both.sample(anatomy, torch.zeros(32, dtype=torch.long))
        dark = both.sample(anatomy, torch.ones(32, dtype=torch.long))
    assert overlap > 0.8
    inside = batch.label.bool().unsqueeze(1)
    assert bright[inside].mean() > bright[~inside].mean() + 0.3
    assert dark[inside].mean() < dark[~inside].mean() - 0.3


def test_the_prior_draws_the_codes_it_has_learnt():
    prior = FlowPrior(1, 16)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    for _ in range(150):
        code = torch.full((32, 1, 4, 4), 2.0) + 0.1 * torch.randn(32, 1, 4, 4)
        noise, time = torch.randn_like(code), torch.rand(32)
        between = noise + (code - noise) * time.view(-1, 1, 1, 1)
        loss = (prior(between, time) - (code - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = prior.draw(64, (4, 4))
    assert drawn.shape == (64, 1, 4, 4)
    assert abs(drawn.mean() - 2) < 0.2 and drawn.std() < 0.5


def test_equal_images_are_no_distance_apart_and_edges_count():
    image = torch.rand(2, 1, 16, 16)
    compare = ReconstructionLoss(teacher(), ReconstructionLossSettings(), COMPUTE)
    assert compare(image, image) == 0
    flat = torch.zeros(2, 1, 16, 16)
    stripes = flat.clone()
    stripes[..., ::2] = 0.2
    no_edges = ReconstructionLoss(teacher(), ReconstructionLossSettings(edges=0, features=0), COMPUTE)
    edges = ReconstructionLoss(teacher(), ReconstructionLossSettings(edges=1, features=0), COMPUTE)
    assert edges(stripes, flat) - no_edges(stripes, flat) == pytest.approx(0.2, abs=1e-6)


def test_noise_is_measured_past_edges():
    noise = torch.randn(4, 1, 64, 64) * 0.05
    step = torch.zeros(4, 1, 64, 64)
    step[..., 32:] = 1.0
    assert torch.allclose(factorised_training.noise_level(noise + step), torch.full((4,), 0.05), rtol=0.1)
