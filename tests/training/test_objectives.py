"""What the objectives compute: which way every term pulls, and with which conditions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.data.dataset import ClipDataset
from magic141.diffusion.flow import interpolate, sample_sigma, shift_sigma
from magic141.diffusion.samplers import randn_like, sample
from magic141.evaluation.scoring.frechet import TubeSpace, frechet_distance
from magic141.models.config import Sampler
from magic141.models.transformer import load_transformer, velocity
from magic141.training.batches import Batch
from magic141.training.cfg_distillation import CfgDistillation, CfgDistillationSpec
from magic141.training.config import CfgDistillationConfig, FlowMatchingConfig, PlacementConfig
from magic141.training.context import TrainContext
from magic141.training.dmd2.backward_simulation import Generated
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.distribution_matching import score_times
from magic141.training.dmd2.dmd2 import Dmd2
from magic141.training.dmd2.fake_updates import FakeUpdates
from magic141.training.dmd2.networks import Guidance
from magic141.training.flow_matching import FlowMatching, FlowMatchingSpec
from magic141.training.random_numbers import step_generator
from tests.diffusion.fields import velocity_to
from tests.models.tiny import CONFIG
from tests.training.dmd2.tiny import PLACEMENT, build

placement = PlacementConfig.model_validate(PLACEMENT)
FAST = {"kind": "adamw", "learning_rate": 0.01}


def context(folder: Path) -> TrainContext:
    return TrainContext(0, 1, torch.device("cpu"), folder, 0, placement)


def batch_of(objective: FlowMatching | CfgDistillation | Dmd2) -> Batch:
    return objective.maker.make(torch.arange(4), step_generator(0, 0))


class Leading:
    """Scores that lead to fixed clips."""

    def __init__(self, real: Tensor, fake: Tensor) -> None:
        self.clips = {"real": real, "fake": fake}

    def real(self, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        return velocity_to(self.clips["real"], x_t, sigma)

    def fake(self, network: Any, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        return velocity_to(self.clips["fake"], x_t, sigma)


def test_flow_matching_asks_for_the_velocity_under_the_caption(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FlowMatchingConfig(num_steps=1, text_dropout=0.0, placement=placement)
    spec = FlowMatchingSpec(config, CONFIG, folders / "data", folders / "teacher", image_condition=True)
    objective = spec.build(context(tmp_path))
    batch = batch_of(objective)

    def exact(model: Any, x_t: Tensor, sigma: Tensor, cond: Any, prefix: Any) -> Tensor:
        assert cond is batch.cond
        assert prefix is batch.prefix
        assert torch.equal(sigma, sample_sigma(4, config.shift, step_generator(0, 1)))
        return velocity_to(batch.x0, x_t, sigma)

    monkeypatch.setattr("magic141.training.flow_matching.velocity", exact)
    assert float(objective.loss(batch, objective.draw(batch.x0, step_generator(0, 1)))) < 1e-8


def test_cfg_distillation_starts_at_the_guidance_that_the_student_lacks(folders: Path, tmp_path: Path) -> None:
    config = CfgDistillationConfig(num_steps=1, placement=placement)
    objective = CfgDistillationSpec(config, CONFIG, folders / "data", folders / "teacher").build(context(tmp_path))
    batch, rng = batch_of(objective), step_generator(0, 1)
    w = config.min_guidance_scale + (config.max_guidance_scale - config.min_guidance_scale) * torch.rand(
        4, generator=rng
    )
    sigma = sample_sigma(4, config.shift, rng)
    x_t = interpolate(batch.x0, torch.randn(batch.x0.shape, generator=rng), sigma)
    teacher = load_transformer(folders / "teacher")
    with torch.no_grad():
        apart = velocity(teacher, x_t, sigma, batch.cond, batch.prefix) - velocity(
            teacher, x_t, sigma, batch.uncond, batch.prefix
        )
    expected = ((w - 1) ** 2 * apart.square().flatten(1).mean(1)).mean()
    loss = objective.loss(batch, objective.draw(batch.x0, step_generator(0, 1)))
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-3, atol=0)


def test_the_gradient_leads_from_the_fake_clip_to_the_real_one(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path)
    batch, w = batch_of(dmd2), Guidance.fixed(dmd2.config, 4)
    real, fake = batch.x0 + 2, batch.x0 + 3
    dmd2.guided = Leading(real, fake)  # type: ignore[assignment]
    gradient = dmd2.distribution_matching_gradient(batch.x0, batch, w, step_generator(0, 1))
    torch.testing.assert_close(gradient, torch.full_like(gradient, (3 - 2) / 2), rtol=1e-3, atol=1e-3)


def test_the_fake_score_learns_the_generated_clips_under_their_captions(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, num_steps=100, fake_optimizer=FAST)
    batch, w = batch_of(dmd2), Guidance.fixed(dmd2.config, 4)
    sigma, noise = torch.full((4,), 0.7), randn_like(batch.x0, step_generator(0, 7))
    x_t = interpolate(batch.x0, noise, sigma)

    def error() -> float:
        with torch.no_grad():
            u = dmd2.guided.fake(dmd2.scores, x_t, sigma, batch, w)
        return float((u - (noise - batch.x0)).square().mean())

    with torch.no_grad():
        conditional = velocity(load_transformer(folders / "teacher"), x_t, sigma, batch.cond, batch.prefix)
        torch.testing.assert_close(dmd2.guided.fake(dmd2.scores, x_t, sigma, batch, w), conditional)
    before = error()
    dmd2.fake_updates.replay.append(Generated(batch.x0, batch, w, exit_step=0))
    dmd2.fake_updates.run(30, step_generator(0, 1))
    assert error() < 0.99 * before


def test_a_fake_score_that_leads_to_the_generated_clips_has_nothing_to_learn(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path)
    batch, w = batch_of(dmd2), Guidance.fixed(dmd2.config, 4)
    made, losses = batch.x0 + 2, []
    for led_to in (made, batch.x0):
        leading: Any = Leading(batch.x0, led_to)
        updates = replace(dmd2.fake_updates, guided=leading)
        (loss_of,) = updates.losses(Generated(made, batch, w, exit_step=0), step_generator(0, 1))
        losses.append(float(loss_of(slice(0, 4))[0]))
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[1] > 2**2, "the real clips are not what it is asked for"


def around_a_step(dmd2: Dmd2) -> tuple[Batch, Tensor, Tensor]:
    """The batch of a generator update, and the clean estimates of its input before and after."""
    rng = step_generator(0, 0)
    batch = dmd2.maker.make(dmd2.sampler.indices(0), rng)
    w, exit_step = Guidance.draw(dmd2.config, 4, rng), dmd2.draw_exit(0).exit_step
    state = dmd2.chain.state(batch, w, exit_step, rng)
    before = dmd2.chain.generate(state, batch, w, exit_step).x0
    dmd2.step(0)
    return batch, before, dmd2.chain.generate(state, batch, w, exit_step).x0


def test_a_step_moves_clips_from_fake_to_real(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dmd2 = build(folders, tmp_path, fake_warmup_updates=0)
    towards = randn_like(batch_of(dmd2).x0, step_generator(0, 7))
    dmd2.guided = Leading(towards, -towards)  # type: ignore[assignment]
    monkeypatch.setattr(FakeUpdates, "run", lambda *_: {"fake_grad_norm": torch.zeros(())})
    _, before, after = around_a_step(dmd2)
    assert float(((after - before) * towards).sum()) > 0


def test_a_step_with_the_regression_term_alone_approaches_the_real_clips(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmd2 = build(folders, tmp_path, generator_input="noised_real", regression_weight=0.5)
    monkeypatch.setattr(dmd2, "distribution_matching_gradient", lambda x, *_: torch.zeros_like(x))
    batch, before, after = around_a_step(dmd2)
    assert float((after - batch.x0).square().mean()) < float((before - batch.x0).square().mean())


def test_the_other_terms_have_their_weights_and_signs(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, generator_input="noised_real", regression_weight=0.5, adversarial_weight=0.25)
    batch, w = batch_of(dmd2), Guidance.fixed(dmd2.config, 4)
    noise = dmd2.discriminator.noise(batch.x0, step_generator(0, 1))
    loss_of = dmd2.discriminator.generator_loss(batch.x0 + 2, batch, w, noise)
    losses, adversarial = dmd2.other_losses(batch.x0 + 2, batch, loss_of), loss_of(batch.x0 + 2)
    assert float(losses["regression_loss"]) == pytest.approx(0.5 * 4, rel=1e-5)
    assert float(losses["adversarial_loss"]) == pytest.approx(0.25 * float(adversarial))
    assert float(adversarial) > 0


def test_the_discriminator_prefers_real_clips(folders: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"adversarial_weight": 1.0, "adversarial_input": "clean", "discriminator_weight": 1.0}
    dmd2 = build(folders, tmp_path, num_steps=100, fake_optimizer=FAST, **options)
    batch, w = batch_of(dmd2), Guidance.fixed(dmd2.config, 4)
    made = 1 - batch.x0
    head, noise = dmd2.discriminator, dmd2.discriminator.noise(made, step_generator(0, 2))

    @torch.no_grad()
    def preference() -> float:
        real, generated = (head.logits(dmd2.scores, x, batch, w, noise).mean() for x in (batch.x0, made))
        return float(real - generated)

    before = preference()
    dmd2.fake_updates.replay.append(Generated(made, batch, w, exit_step=0))
    dmd2.fake_updates.run(30, step_generator(0, 1))
    assert preference() > max(0, before) + 1


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_the_generator_sees_what_its_sampler_shows_it(folders: Path, tmp_path: Path, sampler: Sampler) -> None:
    dmd2 = build(folders, tmp_path, sampler=sampler)
    batch, w = batch_of(dmd2), Guidance.fixed(dmd2.config, 4)
    seen: list[Tensor] = []

    @torch.no_grad()
    def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x_t)
        return velocity(dmd2.generator.module, x_t, sigma, batch.cond, batch.prefix, w.student)

    rng = step_generator(0, 1)
    sample(predict, randn_like(batch.x0, rng), dmd2.chain.sigmas, sampler, rng)
    for exit_step in range(4):
        state = dmd2.chain.state(batch, w, exit_step, step_generator(0, 1))
        torch.testing.assert_close(state.x_t, seen[exit_step])


def test_score_times_keep_to_their_range_and_shift() -> None:
    config = Dmd2Config(min_score_time=0.2, max_score_time=0.4, score_shift=3.0)
    times = score_times(torch.zeros(1000), config, step_generator(0, 1))
    low, high = shift_sigma(torch.tensor([0.2, 0.4]), 3.0)
    assert float(low) <= float(times.min()) < float(low) + 0.01
    assert float(high) - 0.01 < float(times.max()) <= float(high)


def test_validation_holds_the_student_against_the_many_step_model(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = []
    for sampler in ("euler", "renoise"):
        validation = build(folders, tmp_path, sampler=sampler).validation
        batch = validation._batch()
        with torch.no_grad():
            samples.append(validation._sample_student(batch, Guidance.fixed(validation.config, len(batch.x0))))
    assert not torch.allclose(samples[0], samples[1], atol=1e-3), "each sampler has its own chain"
    monkeypatch.setattr(validation, "_sample_reference", lambda *_: 2 * samples[1])
    assert validation.figures(num_steps=1)["validation_variance_ratio"] == pytest.approx(0.25, rel=1e-3)


def test_the_cfg_student_is_asked_at_the_w_of_its_target_and_pulled_to_the_data(folders: Path, tmp_path: Path) -> None:
    config = CfgDistillationConfig(num_steps=1, distillation_weight=0.7, placement=placement)
    objective = CfgDistillationSpec(config, CONFIG, folders / "data", folders / "teacher").build(context(tmp_path))
    student = objective.engine.module
    torch.nn.init.normal_(student.get_parameter("time_text_embed.guidance_embedder.linear_2.weight"))  # zero hides w
    batch, rng = batch_of(objective), step_generator(0, 1)
    low, high = config.min_guidance_scale, config.max_guidance_scale
    w, sigma = low + (high - low) * torch.rand(4, generator=rng), sample_sigma(4, config.shift, rng)
    noise = torch.randn(batch.x0.shape, generator=rng)
    x_t = interpolate(batch.x0, noise, sigma)
    with torch.no_grad():
        u, guided = velocity(student, x_t, sigma, batch.cond, batch.prefix, w), objective.guided(x_t, sigma, batch, w)
    expected = 0.7 * (u - guided).square().mean() + 0.3 * (u - (noise - batch.x0)).square().mean()
    loss = objective.loss(batch, objective.draw(batch.x0, step_generator(0, 1)))
    torch.testing.assert_close(loss.detach(), expected)


def test_batches_are_made_as_the_config_says_and_validated_without_dropout(folders: Path, tmp_path: Path) -> None:
    asked = {"text_dropout": 0.3, "image_dropout": 0.2, "continued_fraction": 0.4}
    flow = FlowMatchingConfig.model_validate({"num_steps": 1, "placement": placement, **asked})
    cfg = CfgDistillationConfig(num_steps=1, continued_fraction=0.4, placement=placement)
    data, teacher = folders / "data", folders / "teacher"
    pretraining = FlowMatchingSpec(flow, CONFIG, data, teacher, image_condition=True).build(context(tmp_path))
    distillation = CfgDistillationSpec(cfg, CONFIG, data, teacher).build(context(tmp_path))
    assert {name: getattr(pretraining.maker, name) for name in asked} == asked
    assert distillation.maker.continued_fraction == 0.4
    validation = pretraining.validation
    assert (validation.text_dropout, validation.image_dropout, validation.continued_fraction) == (0, 0, 0.4)


def test_a_step_trains_and_its_average_is_validated_and_exported(folders: Path, tmp_path: Path) -> None:
    optimizer = {"kind": "adamw", "learning_rate": 0.02, "warmup_steps": 0}
    settings = {"num_steps": 3, "batch_size": 4, "ema_decay": 0.5, "optimizer": optimizer, "placement": placement}
    config = FlowMatchingConfig.model_validate(settings)
    spec = FlowMatchingSpec(config, CONFIG, folders / "data", folders / "teacher", image_condition=True)
    objective = spec.build(context(tmp_path))
    network = objective.engine.module
    weights = [network.get_parameter("proj_out.weight").detach().clone()]
    for step in range(3):
        objective.step(step)
        weights.append(network.get_parameter("proj_out.weight").detach().clone())
    assert all(not torch.equal(before, after) for before, after in pairwise(weights))
    objective.export(tmp_path)
    average = load_transformer(tmp_path / "transformer")
    expected = (weights[1] + 2 * weights[2] + 4 * weights[3]) / 7
    torch.testing.assert_close(average.get_parameter("proj_out.weight").detach(), expected)
    figures = objective.validate()
    network.load_state_dict(average.state_dict())
    rng = step_generator(0, -1)
    clips = objective.validation.make(objective.validation_rows(), rng)
    loss = objective.loss(clips, objective.draw(clips.x0, rng))
    assert figures["validation_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_frechet_ratio_is_the_students_distance_to_the_many_step_models(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmd2 = build(folders, tmp_path)
    validation, rng = dmd2.validation, step_generator(0, 7)
    shape = (2, 2, *batch_of(dmd2).x0.shape[1:])  # seeds, clips
    student, reference = 3 * torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    monkeypatch.setattr(validation, "_sample_student", lambda *_: student)
    monkeypatch.setattr(validation, "_sample_reference", lambda *_: reference)
    real = ClipDataset.open(folders / "data", "validation").latents[:, :, : shape[3]]
    space = TubeSpace.fit(real, shape[2])
    far, near = (
        frechet_distance(space.project(clips.flatten(0, 1)), space.project(real)) for clips in (student, reference)
    )
    figures = validation.figures(num_steps=1)
    assert figures["validation_frechet"] == pytest.approx(far, rel=1e-3)
    assert figures["validation_frechet_ratio"] == pytest.approx(far / near, rel=1e-3)


def test_every_seed_of_a_validation_has_its_own_noise(folders: Path, tmp_path: Path) -> None:
    assert build(folders, tmp_path).validate()["validation_diversity_ratio"] > 0
