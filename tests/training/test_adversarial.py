"""The adversarial losses at their known points."""

from __future__ import annotations

import math

import torch

from magic141.training.adversarial import discriminator_loss, generator_loss


def test_a_head_that_knows_nothing_pays_two_bits() -> None:
    nothing = torch.zeros(3, 5)
    assert math.isclose(float(discriminator_loss(nothing, nothing)), 2 * math.log(2), rel_tol=1e-6)


def test_the_right_verdict_costs_nothing_and_leaves_the_generator_a_gradient() -> None:
    sure = torch.full((3, 5), 20.0)
    assert float(discriminator_loss(sure, -sure)) < 1e-6
    logits = (-sure).requires_grad_()
    generator_loss(logits).backward()
    torch.testing.assert_close(logits.grad, torch.full((3, 5), -1 / 15))  # does not saturate


def test_optimal_logits_of_two_gaussians() -> None:
    """The loss is smallest at the log ratio of the densities, which for N(1, 1) against N(-1, 1) is 2x."""
    rng = torch.Generator().manual_seed(0)
    real, generated = 1 + torch.randn(50_000, generator=rng), -1 + torch.randn(50_000, generator=rng)
    losses = {slope: float(discriminator_loss(slope * real, slope * generated)) for slope in (1.0, 1.8, 2.0, 2.2, 3.0)}
    assert min(losses, key=losses.__getitem__) in (1.8, 2.0, 2.2)
    assert losses[2.0] < losses[1.0] - 0.02
    assert losses[2.0] < losses[3.0] - 0.02
