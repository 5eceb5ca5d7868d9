import copy
import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from garda.core.errors import CheckpointError, ConfigError
from garda.data.augment import ImitatedGeometrySettings
from garda.data.dataset import Batch
from garda.data.task import Task
from garda.models import stylegan, stylegan_training, unet
from garda.models.factorised_training import FactorisedTrainer, GeneratorSettings
from garda.models.features import FeatureSettings, VGG19Encoder, adain, build_encoder
from garda.models.stylegan import Discriminator, StyleGenerator, StyleSettings
from garda.models.stylegan_training import (
    GanObjective,
    GanSettings,
    GanStep,
    GanStyleObjective,
    GanStyleSettings,
    GanTrainingSettings,
    StyleGanTrainer,
    StyleGanTrainerSettings,
)
from garda.models.unet import SegmenterSettings
from garda.training import loop
from garda.training.device import Compute, ComputeSettings
from tests.support.errors import told

TINY = StyleSettings(latent=8, widths=((8, 8), (8,), (4,)))
TASK = Task(name="t", classes=("background", "organ"), size=(16, 16))
COMPUTE = Compute(ComputeSettings(accelerator="cpu", precision="32"))
SEGMENTER = unet.build_segmenter(TASK, SegmenterSettings(widths=(4, 8, 8, 8, 8, 4)))
BRIGHTNESS = nn.AvgPool2d(2)  # an encoder of one feature
FAST = {"batch": 8, "learning_rate": 1e-2, "average_images": 40}
FACTORISED = {"network": {"code": 2, "appearance": 3, "widths": [4, 8], "prior_width": 8}}
TRAINERS = {
    "style": StyleGanTrainer(TASK, StyleGanTrainerSettings(network=TINY), COMPUTE),
    "factorised": FactorisedTrainer(TASK, GeneratorSettings.model_validate(FACTORISED), COMPUTE),
}


def style_generator(*domains: str) -> StyleGenerator:
    generator = StyleGenerator(1, (16, 16), TINY)
    for domain in domains:
        generator.add_domain(domain)
    return generator


@pytest.mark.parametrize("name", TRAINERS)
def test_what_replay_needs_of_every_generator(name):
    TRAINERS[name].check(SEGMENTER)
    generator = TRAINERS[name].build_for("a").eval()
    generator.add_domain("b")
    anatomy = generator.draw(3)
    image = generator.sample(anatomy, torch.tensor([0, 1, 1]))
    assert image.shape == (3, 1, 16, 16) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    assert torch.allclose(generator.sample(anatomy[1:], torch.tensor([1, 1])), image[1:], atol=1e-5)
    labels = generator.labels(anatomy)
    assert labels is None or torch.allclose(labels.sum(dim=1), torch.ones(3, 16, 16))
    before = generator.sample(anatomy, torch.tensor([0, 1, 0]))
    generator.add_domain("c")
    assert generator.domains == ("a", "b", "c")
    assert torch.equal(generator.sample(anatomy, torch.tensor([0, 1, 0])), before)


def test_rows_of_new_domains_follow_from_their_names():
    assert torch.equal(style_generator("a", "b").embedding[1], style_generator("b").embedding[0])
    first, second = (Discriminator(1, (8, 8), (4, 4), names) for names in (("a", "b"), ("b",)))
    assert torch.equal(first.projection[1], second.projection[0])


def test_one_domains_row_is_never_read_for_another():
    generator = style_generator("a", "b")
    generator(generator.draw(2), torch.tensor([0, 0])).sum().backward()
    assert generator.embedding.grad is not None
    assert generator.embedding.grad[0].abs().sum() > 0
    assert generator.embedding.grad[1].abs().sum() == 0


def test_sizes_that_do_not_fit_are_refused():
    assert "3 resolutions cannot draw 18 x 16 pixels" in told(ConfigError, StyleGenerator, 1, (18, 16), TINY)
    assert "6 convolutions are too many for 16 x 16" in told(ConfigError, Discriminator, 1, (16, 16), (4,) * 6, ("a",))


def test_published_widths_have_the_published_size():
    widths = ((512, 256), (256,), (128,), (128,), (64,), (64, 64), (64,))
    generator = StyleGenerator(1, (256, 256), StyleSettings(latent=512, widths=widths))
    assert 7.0e6 < sum(parameter.numel() for parameter in generator.parameters()) < 8.0e6


def test_adain_gives_the_styles_mean_and_deviation():
    content, style = torch.randn(2, 3, 8, 8) * 3 + 1, torch.randn(2, 3, 5, 5) * 0.2 - 4
    changed = adain(content, style)
    assert torch.allclose(changed.mean((2, 3)), style.mean((2, 3)), atol=1e-5)
    assert torch.allclose(changed.std((2, 3), correction=0), style.std((2, 3), correction=0), atol=1e-4)
    assert torch.allclose(adain(content, content), content, atol=1e-5)


def test_r1_of_a_linear_discriminator_is_its_squared_norm():
    weight, real = torch.randn(1, 2, 3, 3), torch.randn(4, 2, 3, 3)
    penalty = stylegan.r1_penalty(lambda x, domains: (x * weight).sum((1, 2, 3)), real, torch.zeros(4))
    assert penalty == pytest.approx(weight.square().sum().item())


def test_minibatch_deviation():
    assert stylegan.minibatch_deviation(torch.ones(4, 2, 3, 3)).max() < 1e-3
    pair = torch.stack([torch.zeros(2, 3, 3), torch.full((2, 3, 3), 2.0)])
    assert torch.allclose(stylegan.minibatch_deviation(pair), torch.ones(2, 1, 3, 3), atol=1e-4)


def test_the_average_of_constant_weights_is_that_constant():
    generator = style_generator("a")
    objective = GanStep(generator, Discriminator(1, (16, 16), (4, 4), ("a",)), GanSettings(steps=8), COMPUTE)
    before = copy.deepcopy(generator.state_dict())
    for _ in range(5):
        objective._average.update_parameters(generator)
    assert all(torch.allclose(value, before[name]) for name, value in objective.generator.state_dict().items())


def test_a_generator_learns_the_brightness_of_its_source():
    settings = GanTrainingSettings(**FAST, steps=40, widths=(8, 8, 8), geometry=None)
    objective = GanObjective(TASK, "a", TINY, settings, COMPUTE)
    drawn, domains = objective.generator.draw(16), torch.zeros(16, dtype=torch.long)
    before = abs(objective.generator.sample(drawn, domains).mean().item() - 0.7)
    batch = Batch((0.7 + 0.05 * torch.randn(8, 1, 16, 16)).clamp(0, 1), None)
    told = [objective.step(batch, step) for step in range(40)]
    assert set(told[0]) == {"discriminator", "generator", "r1"} and set(told[-1]) == {"discriminator", "generator"}
    assert abs(objective.generator.sample(drawn, domains).mean().item() - 0.7) < before / 2


def test_a_new_style_is_learnt_and_the_old_one_kept():
    source = style_generator("a").eval()
    settings = GanStyleSettings(**FAST, steps=80, widths=(8, 8), content=0.0, distillation=10.0)
    objective = GanStyleObjective(TASK, "b", source, BRIGHTNESS, settings, COMPUTE)
    anatomy, old, new = source.draw(16), torch.zeros(16, dtype=torch.long), torch.ones(16, dtype=torch.long)
    before, frozen = source.sample(anatomy, old), copy.deepcopy(source.state_dict())
    for step in range(80):
        losses = objective.step(Batch(torch.full((4, 1, 16, 16), 0.9), None), step)
    assert {"content", "distillation", "discriminator", "generator"} <= set(losses)
    generator = objective.generator
    assert generator.domains == ("a", "b") and source.domains == ("a",)
    assert all(torch.equal(value, frozen[name]) for name, value in source.state_dict().items())
    assert (generator.sample(anatomy, old) - before).abs().mean() < 0.1
    assert abs(generator.sample(anatomy, new).mean() - 0.9) < abs(before.mean() - 0.9) / 2


class Judge(nn.Module):
    """A discriminator by hand, which remembers what it is asked: weighted mean feature, plus the domain's index."""

    def __init__(self, *_: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, domains: Tensor) -> Tensor:
        self.asked.append((x.detach().clone(), domains.clone()))
        return self.weight * x.mean((1, 2, 3)) + domains


class StyleStep:
    """One step of :class:`GanStyleObjective` on domains a, b and the new c, with a judge by hand; no weight changes.

    Attributes:
        losses: what the step told.
        descended: optimizer's name -> the loss whose gradient it was given.
        fake, real: features that were judged.
        domains: of the judged.
        drawn, replayed: images of G_k and G_{k-1}, not cut to [0, 1].
        target: the real images.
    """

    OLD, COUNT = 8, 17

    def __init__(self, *, moved: float, step: int) -> None:
        previous = style_generator("a", "b").eval()
        anatomy = previous.draw(self.COUNT)
        self.descended: dict[str, Tensor] = {}
        self.target = torch.rand(self.COUNT - self.OLD, 1, 16, 16)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StyleGenerator, "draw", lambda generator, count: anatomy)
            patch.setattr(stylegan_training, "Discriminator", Judge)
            settings = GanStyleSettings(steps=2, batch=self.COUNT)
            objective = GanStyleObjective(TASK, "c", previous, BRIGHTNESS, settings, COMPUTE)
            names = {id(optimizer): name for name, optimizer in objective._optimizers.items()}
            note = self.descended.__setitem__
            patch.setattr(loop, "backward_step", lambda optimizer, loss: note(names[id(optimizer)], loss.detach()))
            with torch.no_grad():
                for parameter in objective._generator.parameters():
                    parameter.add_(moved * torch.randn_like(parameter))
            self.losses = objective.step(Batch(self.target, None), step)
        asked = objective._discriminator.asked
        (self.fake, self.domains), (self.real, domains) = asked[:2]
        assert torch.equal(domains, self.domains) and torch.equal(asked[-1][1], self.domains)
        assert torch.equal(asked[-1][0], self.fake)
        before = torch.cat([self.domains[: self.OLD], torch.zeros(self.COUNT - self.OLD, dtype=torch.long)])
        with torch.no_grad():
            self.drawn, self.replayed = objective._generator(anatomy, self.domains), previous(anatomy, before)


@pytest.fixture(scope="module")
def style_step() -> StyleStep:
    torch.manual_seed(0)
    return StyleStep(moved=0.1, step=1)


def test_half_of_a_batch_repeats_old_domains_and_half_learns_anatomy_with_the_targets_statistics(style_step):
    it = style_step
    assert set(it.domains[: it.OLD].tolist()) == {0, 1}
    assert set(it.domains[it.OLD :].tolist()) == {2}
    assert torch.equal(it.fake, BRIGHTNESS(it.drawn))
    assert torch.equal(it.real[: it.OLD], BRIGHTNESS(it.replayed)[: it.OLD])
    known, target, real = BRIGHTNESS(it.replayed)[it.OLD :], BRIGHTNESS(it.target), it.real[it.OLD :]
    assert torch.allclose(real.mean((2, 3)), target.mean((2, 3)), atol=1e-5)
    assert torch.allclose(real.std((2, 3)), target.std((2, 3)), rtol=1e-3)
    assert torch.allclose(F.instance_norm(real, eps=1e-12), F.instance_norm(known, eps=1e-12), atol=1e-2)


def test_distillation_is_exactly_zero_before_anything_is_learnt():
    it = StyleStep(moved=0.0, step=0)
    assert it.replayed.min() < 0  # so that a cut to [0, 1] on one side alone would show
    assert it.losses["distillation"] == 0


def test_what_a_style_costs_the_generator(style_step):
    it = style_step
    known, drawn = BRIGHTNESS(it.replayed)[it.OLD :], BRIGHTNESS(it.drawn)
    scale, offset = known.std((2, 3), keepdim=True, correction=0), known.mean((2, 3), keepdim=True)
    content = (F.instance_norm(drawn[it.OLD :], eps=1e-12) * scale + offset - known).square().mean()
    distillation = (it.drawn - it.replayed)[: it.OLD].abs().mean()
    fooled = torch.log1p(torch.exp(-(0.5 * drawn.mean((1, 2, 3)) + it.domains))).mean()
    assert min(content, distillation, fooled) > 1e-3
    assert it.losses["content"].item() == pytest.approx(content.item(), rel=1e-3)
    assert it.losses["distillation"].item() == pytest.approx(distillation.item())
    assert it.losses["generator"].item() == pytest.approx(fooled.item())
    expected = fooled + 10 * content + 1 * distillation
    assert it.descended["generator_optimizer"].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("step", [1, 16])
def test_what_a_style_costs_the_discriminator(step):
    it = StyleStep(moved=0.1, step=step)
    fake, real = (0.5 * features.mean((1, 2, 3)) + it.domains for features in (it.fake, it.real))
    judged = (torch.log1p(torch.exp(fake)).mean() + torch.log1p(torch.exp(-real)).mean()).item()
    assert it.losses["discriminator"].item() == pytest.approx(judged)
    r1 = 0.5**2 / 64  # the squared gradient of half the mean of 8 x 8 features
    penalty = 5.0 / 2 * 16 * r1 if step == 16 else 0.0
    assert it.descended["discriminator_optimizer"].item() == pytest.approx(judged + penalty)


@pytest.mark.parametrize("geometry", [ImitatedGeometrySettings(probability=1.0), None])
def test_motion_augments_what_the_discriminator_sees(monkeypatch, geometry):
    monkeypatch.setattr(stylegan_training, "Discriminator", Judge)
    anatomy, real = style_generator("a").draw(4), torch.rand(4, 1, 16, 16)
    monkeypatch.setattr(StyleGenerator, "draw", lambda generator, count: anatomy)
    objective = GanObjective(TASK, "a", TINY, GanTrainingSettings(steps=2, batch=4, geometry=geometry), COMPUTE)
    with torch.no_grad():
        fake = objective._generator(anatomy, torch.zeros(4, dtype=torch.long))
    objective.step(Batch(real, None), 1)
    (seen_fake, _), (seen_real, _) = objective._discriminator.asked[:2]
    for seen, still in ((seen_fake, fake), (seen_real, real)):
        moved = [not torch.allclose(one, other, atol=1e-3) for one, other in zip(seen, still, strict=True)]
        assert moved == [geometry is not None] * 4


def test_the_segmenters_own_encoder():
    encoder = build_encoder(FeatureSettings(depth=2), SEGMENTER)
    assert encoder(torch.rand(2, 1, 16, 16)).shape == (2, 8, 4, 4)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_vgg19_comes_from_a_local_file_that_is_checked(tmp_path: Path):
    file = tmp_path / "vgg19.pth"

    def encoder(sha256: str | None) -> nn.Module:
        return build_encoder(FeatureSettings(encoder="vgg19", weights=sha256 and str(file), sha256=sha256), SEGMENTER)

    for digest, words in ((None, "vgg19 needs a weights file and its SHA-256"), ("0", "no such weights file")):
        with pytest.raises(CheckpointError, match=words):
            encoder(digest)
    original, image = VGG19Encoder(), torch.rand(1, 1, 32, 32)
    torch.save({f"features.{name}": value for name, value in original.features.state_dict().items()}, file)
    assert "has the SHA-256" in told(CheckpointError, encoder, "0")
    features = encoder(hashlib.sha256(file.read_bytes()).hexdigest())(image)
    assert features.shape == (1, 512, 4, 4) and torch.equal(features, original(image))
    file.write_bytes(b"no weights")
    assert "does not hold VGG19's weights" in told(CheckpointError, encoder, hashlib.sha256(b"no weights").hexdigest())
