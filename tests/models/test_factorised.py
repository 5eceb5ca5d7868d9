import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from garda.core.errors import ConfigError
from garda.data.dataset import Batch, Slices
from garda.data.task import Task
from garda.models import factorised_training, unet
from garda.models.factorised import FactorisedGenerator, FactorisedSettings
from garda.models.factorised_training import FactorisedTrainer, GeneratorSettings, ReconstructionObjective
from garda.models.features import ReconstructionLoss, ReconstructionLossSettings
from garda.models.flow_prior import FlowMatchingObjective, FlowPrior, PriorTrainingSettings
from garda.models.generator import Anatomy
from garda.models.unet import SegmenterSettings
from garda.training.cache import Cache, Stage
from garda.training.device import Compute, ComputeSettings
from garda.training.loop import Phase

TASK = Task(name="t", classes=("background", "disc"), size=(16, 16))
COMPUTE = Compute(ComputeSettings(accelerator="cpu", precision="32"))
NETWORK = {"code": 2, "appearance": 3, "widths": (8, 16), "prior_width": 16}
MANY = {"steps": 100, "batch": 16, "learning_rate": 1e-2}
SETTINGS = {
    "network": NETWORK,
    "reconstruction": MANY,
    "prior": {"steps": 3, "batch": 4},
    "style": MANY | {"steps": 40, "estimate": 4},
}
TRAINER = FactorisedTrainer(TASK, GeneratorSettings.model_validate(SETTINGS), COMPUTE)


class Discs(Slices):
    """A bright disc on black at random places, or a dark one on white."""

    def __init__(self, *, inverted: bool = False) -> None:
        self.inverted = inverted

    def batch(self, step: int, size: int, seed: int) -> Batch:
        random = torch.Generator().manual_seed(step * 1000 + seed % 1000)
        centre = torch.rand(size, 2, 1, 1, generator=random) * 6 + 5
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        inside = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < 12).float().unsqueeze(1)
        image = 0.1 + 0.8 * (1 - inside if self.inverted else inside)
        return Batch(image, None if self.inverted else inside[:, 0].long())


def segmenter():
    torch.manual_seed(3)
    return unet.build_segmenter(TASK, SegmenterSettings(widths=(4, 4, 4, 4, 4, 4))).eval().requires_grad_(False)


def learn(folder: Path, cache: Path) -> FactorisedGenerator:
    stage = Stage(lambda part: Phase(part, folder / part, seed=1), Cache(cache, {"seed": 1}))
    return TRAINER.learn_source("a", Discs(), stage, segmenter())


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory):
    """The folder of a cache, the source's generator and its state, and that of one more domain."""
    folder = tmp_path_factory.mktemp("factorised")
    source = learn(folder / "a", folder / "cache")
    before = {name: value.clone() for name, value in source.state_dict().items()}
    stage = Stage(lambda part: Phase(part, folder / "b" / part, seed=1))
    return folder, source, before, TRAINER.learn_style(source, "b", Discs(inverted=True), stage, segmenter())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="4 resolutions and the prior's two do not halve 48 x 16 pixels evenly"):
        FactorisedGenerator(1, 2, (48, 16), FactorisedSettings(widths=(8, 8, 8, 8)))


def test_labels_are_needed():
    with pytest.raises(ValueError, match="needs labels"):
        ReconstructionObjective(TRAINER, "a", segmenter()).step(Discs(inverted=True).batch(0, 4, 0), 0)


def test_a_new_style_leaves_everything_else_as_it_was(learnt):
    _, source, before, later = learnt
    assert source.domains == ("a",) and later.domains == ("a", "b")
    for name, value in source.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in later.state_dict().items():
        if not name.startswith("branches.1"):
            assert torch.equal(value[:1] if name in ("mean", "factor", "noise") else value, before[name]), name
    assert not torch.equal(later.mean[1], later.mean[0])


def test_a_new_style_is_kept_in_half_the_room(learnt):
    later = copy.deepcopy(learnt[-1])
    branches = [later.branches[index].last.weight.clone() for index in (0, 1)]
    later.round_style()
    assert torch.equal(later.branches[0].last.weight, branches[0])
    assert torch.equal(later.branches[1].last.weight, branches[1].half().float())
    kinds = {name: value.dtype for name, value in later.kept_state().items()}
    assert kinds["branches.1.last.weight"] == torch.float16 and kinds["branches.0.last.weight"] == torch.float32


def test_what_the_source_taught_is_shared_between_runs(learnt, tmp_path):
    folder, _, before, _ = learnt
    again = learn(tmp_path / "again", folder / "cache").state_dict()
    assert not (tmp_path / "again").exists()
    assert all(torch.equal(value, again[name]) for name, value in before.items())


def test_discs_come_back_with_their_labels_and_a_target_in_its_own_style(learnt):
    both, batch = learnt[-1], Discs().batch(7, 32, 5)
    with torch.no_grad():
        anatomy = Anatomy(both.anatomy(batch.image), (torch.randn(32, 3, 1, 1), torch.randn(32, 1, 16, 16)))
        labels = both.labels(anatomy)[:, 1]
        bright, dark = (both.sample(anatomy, torch.full((32,), domain)) for domain in (0, 1))
    assert 2 * (labels * batch.label).sum() / (labels + batch.label).sum() > 0.8
    inside = batch.label.bool().unsqueeze(1)
    assert bright[inside].mean() > bright[~inside].mean() + 0.3
    assert dark[inside].mean() < dark[~inside].mean() - 0.3


def test_the_prior_draws_the_codes_it_has_learnt():
    settings = PriorTrainingSettings(steps=120, learning_rate=2e-2, average=10)
    objective = FlowMatchingObjective(TASK, nn.Identity(), FlowPrior(1, 8), settings, COMPUTE)
    for step in range(120):
        objective.step(Batch(2.0 + 0.1 * torch.randn(32, 1, 4, 4), None), step)
    with torch.no_grad():
        drawn = objective.prior.draw(64, (4, 4))
    assert drawn.shape == (64, 1, 4, 4)
    assert abs(drawn.mean() - 2) < 0.2 and drawn.std() < 0.5


def test_equal_images_are_no_distance_apart_and_edges_count():
    image, flat = torch.rand(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    assert ReconstructionLoss(segmenter(), ReconstructionLossSettings(), COMPUTE)(image, image) == 0
    stripes = flat.clone()
    stripes[..., ::2] = 0.2
    without, edges = (
        ReconstructionLoss(segmenter(), ReconstructionLossSettings(edges=weight, features=0), COMPUTE)(stripes, flat)
        for weight in (0, 1)
    )
    assert edges - without == pytest.approx(0.2, abs=1e-6)


def test_noise_is_measured_past_edges():
    noise = torch.randn(4, 1, 64, 64) * 0.05
    noise[..., 32:] += 1.0
    assert torch.allclose(factorised_training.noise_level(noise), torch.full((4,), 0.05), rtol=0.1)
