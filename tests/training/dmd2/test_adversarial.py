"""The adversarial losses at their known points, and the discriminator of a tiny run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magic141.evaluation.generation.tensor_memory import TensorMemory
from magic141.training.dmd2.adversarial import loss_as_generated, loss_as_real
from magic141.training.dmd2.backward_simulation import Generated
from magic141.training.dmd2.dmd2 import Dmd2
from magic141.training.dmd2.networks import Guidance
from magic141.training.random_numbers import step_generator
from tests.training.dmd2.tiny import build, weights


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    return loss_as_real(real) + loss_as_generated(generated)


def test_a_head_that_knows_nothing_pays_two_bits() -> None:
    nothing = torch.zeros(3, 5)
    assert math.isclose(float(discriminator_loss(nothing, nothing)), 2 * math.log(2), rel_tol=1e-6)


def test_the_right_verdict_costs_nothing_and_leaves_the_generator_a_gradient() -> None:
    sure = torch.full((3, 5), 20.0)
    assert float(discriminator_loss(sure, -sure)) < 1e-6
    logits = (-sure).requires_grad_()
    loss_as_real(logits).backward()
    torch.testing.assert_close(logits.grad, torch.full((3, 5), -1 / 15))  # does not saturate


def test_optimal_logits_of_two_gaussians() -> None:
    """The loss is smallest at the log ratio of the densities, which for N(1, 1) against N(-1, 1) is 2x."""
    rng = torch.Generator().manual_seed(0)
    real, generated = 1 + torch.randn(50_000, generator=rng), -1 + torch.randn(50_000, generator=rng)
    losses = {slope: float(discriminator_loss(slope * real, slope * generated)) for slope in (1.0, 1.8, 2.0, 2.2, 3.0)}
    assert min(losses, key=losses.__getitem__) in (1.8, 2.0, 2.2)
    assert losses[2.0] < losses[1.0] - 0.02
    assert losses[2.0] < losses[3.0] - 0.02


def test_adversarial_loss_reaches_the_clip_and_leaves_no_trace_in_the_fake_score(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, adversarial_weight=1.0)
    batch, w = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), Guidance.fixed(dmd2.config, 4)
    noise = dmd2.discriminator.noise(batch.x0, step_generator(0, 0))

    def loss(x: Tensor) -> Tensor:
        return dmd2.discriminator.generator_loss(x, batch, w, noise)(x)

    x = batch.x0.clone().requires_grad_()
    loss(x).backward()
    assert x.grad is not None
    towards = x.grad / x.grad.norm()
    slope = (loss(batch.x0 + 0.01 * towards) - loss(batch.x0 - 0.01 * towards)) / 0.02  # of the loss' own values
    torch.testing.assert_close(slope, x.grad.norm(), rtol=0.02, atol=1e-6)
    assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in dmd2.scores.parameters())


@pytest.mark.parametrize("seen", ["clean", "noised"])
def test_the_discriminator_sees_clips_as_they_are_or_with_noise(folders: Path, tmp_path: Path, seen: str) -> None:
    dmd2 = build(folders, tmp_path, adversarial_weight=1.0, adversarial_input=seen)
    batch, w = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), Guidance.fixed(dmd2.config, 4)
    noises = [dmd2.discriminator.noise(batch.x0, step_generator(0, step)) for step in (1, 2)]
    one, other = (dmd2.discriminator.logits(dmd2.scores, batch.x0, batch, w, noise) for noise in noises)
    assert torch.equal(one, other) == (seen == "clean")


def kept_clips(dmd2: Dmd2) -> Generated:
    batch, w = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), Guidance.fixed(dmd2.config, 4)
    return Generated(batch.x0 + 0.5, batch, w, exit_step=0)


def test_terms_with_backward_passes_of_their_own_have_the_gradient_of_their_sum(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, adversarial_weight=1.0, discriminator_weight=0.5)
    trained = [parameter for parameter in dmd2.scores.parameters() if parameter.requires_grad]
    terms = dmd2.fake_updates.losses(kept_clips(dmd2), step_generator(0, 1))
    losses = [loss_of(slice(0, 4))[0] for loss_of in terms]
    expected = torch.autograd.grad(torch.stack(losses).sum(), trained, allow_unused=True)
    dmd2.parts.accumulate(dmd2.fake, *dmd2.fake_updates.losses(kept_clips(dmd2), step_generator(0, 1)))
    assert len(losses) == 3
    for parameter, gradient in zip(trained, expected, strict=True):
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-6)
    dmd2.fake.step()
    assert dmd2.fake.num_updates == 1


def test_the_heads_losses_are_weighted_and_shown_without_their_weight(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, adversarial_weight=1.0, discriminator_weight=0.25)
    for loss_of in dmd2.discriminator.losses(kept_clips(dmd2), step_generator(0, 1)):
        loss, shown = loss_of(slice(0, 4))
        torch.testing.assert_close(loss, 0.25 * shown["discriminator_loss"])


def peak_mb(dmd2: Dmd2) -> tuple[float, float]:
    """Of an update of the fake score, and of one of the generator."""
    state, made = dmd2.simulate(0, step_generator(0, 0))
    dmd2.fake_updates.replay_if_finite(made)
    with TensorMemory() as fake:
        dmd2.fake_updates.run(1, step_generator(0, 1))
    with TensorMemory() as generator:
        dmd2.update_generator(state, made, step_generator(0, 2))
    return fake.peak_mb, generator.peak_mb


def test_a_discriminator_needs_hardly_more_memory_than_the_fake_score_alone(folders: Path, tmp_path: Path) -> None:
    alone, judged = (peak_mb(build(folders, tmp_path, adversarial_weight=weight)) for weight in (0.0, 1.0))
    assert judged[0] < 1.2 * alone[0]
    assert judged[1] < 1.2 * alone[1]


@pytest.mark.parametrize(("weight", "learns"), [(1e-30, False), (0.1, True)])
def test_the_discriminators_loss_has_its_weight(folders: Path, tmp_path: Path, weight: float, learns: bool) -> None:
    dmd2 = build(folders, tmp_path, adversarial_weight=1.0, discriminator_weight=weight)
    assert dmd2.scores.head is not None
    before = weights(dmd2.scores.head)
    dmd2.step(0)
    after = weights(dmd2.scores.head)
    assert any(not torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in before) == learns
