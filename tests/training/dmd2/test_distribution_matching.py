"""DMD2 against closed forms: for Gaussian data real and fake scores are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magic141.diffusion.flow import expand, interpolate, sample_sigma, x0_from_velocity
from magic141.training.dmd2.distribution_matching import MIN_NORMALISER, dmd2_gradient, dmd2_loss


def gaussian_velocity(x_t: Tensor, sigma: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """The exact velocity `E[noise - x0 | x_t]` for x0 ~ N(mean, covariance); x_t [B, D]."""
    s = sigma.reshape(-1, 1, 1)
    eye = torch.eye(len(mean), dtype=x_t.dtype)
    total = (1 - s) ** 2 * covariance + s**2 * eye
    centred = (x_t - (1 - expand(sigma, x_t)) * mean)[..., None]
    solved: Tensor = torch.linalg.solve(total, centred)
    x0 = mean + ((1 - s) * covariance @ solved)[..., 0]
    return (s * solved)[..., 0] - x0


def test_gradient_is_the_published_formula() -> None:
    x, real, fake = torch.randn(3, 4, 2, 3, 3, 3).double()
    gradient = dmd2_gradient(x, real, fake)
    for i in range(4):  # transcription: (x0_fake - x0_real) / mean(|x - x0_real|), per sample
        weight = (x[i] - real[i]).abs().mean()
        torch.testing.assert_close(gradient[i], (fake[i] - real[i]) / weight)


def test_loss_pushes_x_along_the_gradient() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(4, 6).double()
    dmd2_loss(x, gradient).backward()
    torch.testing.assert_close(x.grad, gradient / x.numel())


def test_equal_scores_give_exactly_zero() -> None:
    x, score = torch.randn(2, 4, 6)
    assert dmd2_gradient(x, score, score).abs().max() == 0


def test_normaliser_has_a_floor_and_nan_counts_as_zero() -> None:
    x = torch.ones(2, 3)
    assert torch.equal(
        dmd2_gradient(x, x, x + MIN_NORMALISER),
        torch.full((2, 3), 1.0).mul(((x + MIN_NORMALISER) - x) / MIN_NORMALISER),
    )
    broken = dmd2_gradient(x, torch.full_like(x, float("nan")), x)
    assert broken.abs().max() == 0


def test_a_place_at_which_the_fake_score_overflows_pulls_nowhere() -> None:
    x = torch.zeros(3)[None]
    fake = torch.tensor([[torch.inf, -torch.inf, 3.0]])
    assert dmd2_gradient(x, x + 2, fake).tolist() == [[0.0, 0.0, 0.5]]


def test_gradient_in_x0_form_equals_the_weighted_score_difference() -> None:
    """x0_fake - x0_real = sigma * (u_real - u_fake), the paper's velocity form of DMD."""
    mean, covariance = torch.zeros(3).double(), torch.eye(3).double()
    x_t, sigma = torch.randn(5, 3).double(), torch.rand(5).double()
    real = gaussian_velocity(x_t, sigma, mean + 1, covariance)
    fake = gaussian_velocity(x_t, sigma, mean, covariance)
    difference = x0_from_velocity(x_t, fake, sigma) - x0_from_velocity(x_t, real, sigma)
    torch.testing.assert_close(difference, expand(sigma, x_t) * (real - fake))


COVARIANCES = {
    "diagonal": torch.diag(torch.tensor([0.5, 2.0, 1.0])).double(),
    "full": torch.tensor([[1.0, 0.6, 0.1], [0.6, 0.8, -0.2], [0.1, -0.2, 1.5]]).double(),
}


@pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES)
def test_gradient_is_the_analytic_one_between_gaussians(covariance: Tensor) -> None:
    """x0_fake - x0_real = sigma^2/(1-sigma) * (score_fake - score_real), the scores of the noised Gaussians."""
    rng = torch.Generator().manual_seed(0)
    means = {"real": torch.tensor([1.0, -2.0, 0.0]).double(), "fake": torch.tensor([0.0, 0.5, 1.0]).double()}
    covariances = {"real": covariance, "fake": torch.eye(3).double()}
    x = torch.randn(6, 3, generator=rng).double()
    sigma = 0.1 + 0.8 * torch.rand(6, generator=rng).double()
    x_t = interpolate(x, torch.randn(6, 3, generator=rng).double(), sigma)

    def score(kind: str, i: int) -> Tensor:
        noised = (1 - sigma[i]) ** 2 * covariances[kind] + sigma[i] ** 2 * torch.eye(3).double()
        gradient: Tensor = -torch.linalg.inv(noised) @ (x_t[i] - (1 - sigma[i]) * means[kind])
        return gradient

    x0 = {
        kind: x0_from_velocity(x_t, gaussian_velocity(x_t, sigma, means[kind], covariances[kind]), sigma)
        for kind in means
    }
    gradient = dmd2_gradient(x, x0["real"], x0["fake"])
    for i in range(6):
        expected = sigma[i] ** 2 / (1 - sigma[i]) * (score("fake", i) - score("real", i))
        torch.testing.assert_close(gradient[i], expected / (x[i] - x0["real"][i]).abs().mean())


def test_training_moves_a_gaussian_generator_onto_the_target() -> None:
    """Generator x = mu + L*noise; both scores exact: mean and full covariance become the target's."""
    torch.manual_seed(0)
    target_mean = torch.tensor([1.0, -2.0]).double()
    target = torch.tensor([[1.0, 0.6], [0.6, 0.8]]).double()
    mu = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    factor = (0.3 * torch.eye(2)).double().requires_grad_()
    optimizer = torch.optim.Adam([mu, factor], lr=0.02)
    rng = torch.Generator().manual_seed(1)
    for step in range(900):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 900)
        x = mu + torch.randn(256, 2, generator=rng).double() @ factor.T
        sigma = sample_sigma(256, 1.0, rng, 0.02, 0.98).double()
        x_t = interpolate(x.detach(), torch.randn(256, 2, generator=rng).double(), sigma)
        real = gaussian_velocity(x_t, sigma, target_mean, target)
        fake = gaussian_velocity(x_t, sigma, mu.detach(), (factor @ factor.T).detach())
        gradient = dmd2_gradient(x.detach(), x0_from_velocity(x_t, real, sigma), x0_from_velocity(x_t, fake, sigma))
        optimizer.zero_grad()
        dmd2_loss(x, gradient).backward()
        optimizer.step()
    torch.testing.assert_close(mu.detach(), target_mean, atol=0.08, rtol=0)
    torch.testing.assert_close((factor @ factor.T).detach(), target, atol=0.12, rtol=0)


@pytest.mark.parametrize("told", [True, False])
def test_a_fake_score_that_is_not_told_the_exit_makes_late_clips_too_contrasty(told: bool) -> None:
    """Half the clips leave early, too blurred to learn (deviation 0.5); the others start at the target's, 1."""
    early = torch.full((512,), 0.5).double()
    late = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([late], lr=0.02)
    rng = torch.Generator().manual_seed(0)
    zero, one = torch.zeros(1).double(), torch.eye(1).double()
    for _ in range(150):
        x = late * torch.randn(512, 1, generator=rng).double()
        sigma = sample_sigma(512, 1.0, rng, 0.02, 0.98).double()
        x_t = interpolate(x.detach(), torch.randn(512, 1, generator=rng).double(), sigma)
        spreads = [late.detach().expand(512)] if told else [early, late.detach().expand(512)]
        noised = torch.stack([((1 - sigma) * spread) ** 2 + sigma**2 for spread in spreads])
        share = torch.softmax(-0.5 * (x_t[:, 0] ** 2 / noised + noised.log()), 0)  # whose clip x_t may be
        estimates = torch.stack([(1 - sigma) * s**2 / n * x_t[:, 0] for s, n in zip(spreads, noised, strict=True)])
        fake = (share * estimates).sum(0)[:, None]
        real = x0_from_velocity(x_t, gaussian_velocity(x_t, sigma, zero, one), sigma)
        optimizer.zero_grad()
        dmd2_loss(x, dmd2_gradient(x.detach(), real, fake)).backward()
        optimizer.step()
    reached = float(late.detach())
    assert (abs(reached - 1) < 0.1) if told else reached > 1.15
