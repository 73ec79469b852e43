"""Identities of the flow-matching path."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from magic141.diffusion.flow import (
    expand,
    interpolate,
    sample_sigma,
    shift_sigma,
    sigma_grid,
    velocity_target,
    x0_from_velocity,
)
from magic141.diffusion.guidance import guided_velocity
from magic141.diffusion.samplers import randn_like, sample
from magic141.models.config import Sampler
from tests.diffusion.fields import velocity_to

SHAPE = (5, 3, 2, 4, 4)


@pytest.fixture
def path() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, *SHAPE, generator=generator).double()
    return x0, noise, torch.rand(SHAPE[0], generator=generator).double() * 0.9 + 0.1


def test_velocity_gives_back_both_ends_of_the_path(path: tuple[torch.Tensor, ...]) -> None:
    x0, noise, sigma = path
    x_t, velocity = interpolate(x0, noise, sigma), velocity_target(x0, noise)
    torch.testing.assert_close(x0_from_velocity(x_t, velocity, sigma), x0)
    torch.testing.assert_close(x_t + (1 - expand(sigma, x_t)) * velocity, noise)
    torch.testing.assert_close(velocity_to(x0, x_t, sigma), velocity)


def test_path_starts_at_the_data_and_ends_in_noise(path: tuple[torch.Tensor, ...]) -> None:
    x0, noise, sigma = path
    assert torch.equal(interpolate(x0, noise, torch.zeros_like(sigma)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones_like(sigma)), noise)


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
def test_the_inverse_shift_moves_times_back(shift: float) -> None:
    x = torch.linspace(0, 1, 11).double()
    torch.testing.assert_close(shift_sigma(shift_sigma(x, shift), 1 / shift), x)


def test_four_step_grid_is_the_papers() -> None:
    expected = torch.tensor([1000, 937.5, 833.3333, 625, 0])
    torch.testing.assert_close(sigma_grid(4, shift=5.0) * 1000, expected)


@pytest.mark.parametrize("bounds", [(), (0.2, 0.4)])
def test_training_times_follow_the_shifted_uniform_law(bounds: tuple[float, ...]) -> None:
    first, again = (sample_sigma(20_000, 5.0, torch.Generator().manual_seed(0), *bounds) for _ in range(2))
    low, high = bounds or (0.0, 1.0)
    places = torch.tensor([0.1, 0.5, 0.9])
    quantiles = shift_sigma(first, 1 / 5.0).quantile(places)
    torch.testing.assert_close(quantiles, low + (high - low) * places, atol=0.015, rtol=0)
    assert torch.equal(first, again), "they are drawn from the given generator"


def test_our_euler_sampler_equals_diffusers_scheduler() -> None:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))

    def network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * 1.7) + sigma.reshape(-1, 1, 1, 1, 1)

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 5)[:-1].tolist())
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x)) / 1000), t, x, return_dict=False)[0]
    ours = sample(network, noise, sigma_grid(4, 5.0), "euler", torch.Generator())
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_one_known_clip_is_reproduced_by_both_samplers(sampler: Sampler) -> None:
    """With all the data in one point the exact velocity is known, and every chain ends in that point."""
    point = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))

    def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return velocity_to(point, x, sigma)

    made = sample(exact, noise, sigma_grid(4, 5.0), sampler, torch.Generator().manual_seed(4))
    torch.testing.assert_close(made, point, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("sampler", "kept"), [("euler", 1.0), ("renoise", 0.0)])
def test_a_chain_goes_over_clips_with_standard_normal_noise(sampler: Sampler, kept: float) -> None:
    """The ODE keeps the noise that it began with, and the renoising chain draws it afresh."""
    point, noise = torch.ones(8, 4096), torch.randn(8, 4096, generator=torch.Generator().manual_seed(3))

    def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return velocity_to(point, x, sigma)

    sigmas = sigma_grid(4, 5.0)[:3]
    mixed = sample(exact, noise, sigmas, sampler, torch.Generator().manual_seed(4))
    mixed_in = (mixed - (1 - sigmas[-1]) * point) / sigmas[-1]
    moments = torch.stack([mixed_in.mean(), mixed_in.var(), (mixed_in * noise).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1.0, kept]), atol=0.03, rtol=0)


def test_a_seed_gives_the_same_noise_in_every_dtype() -> None:
    x = torch.zeros(SHAPE)
    whole, halved = (randn_like(like, torch.Generator().manual_seed(0)) for like in (x, x.bfloat16()))
    assert torch.equal(halved, whole.bfloat16())


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_the_chain_up_to_a_step_and_that_step_are_the_whole_chain(sampler: Sampler) -> None:
    """So backward simulation, whose generator is trained on what it sees when it samples."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    sigmas = sigma_grid(4, 5.0)

    def network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) * sigma.reshape(-1, 1, 1, 1, 1)

    x_t = sample(network, noise, sigmas[:4], sampler, torch.Generator().manual_seed(6))
    sigma = sigmas[3].expand(len(x_t))
    last = x0_from_velocity(x_t, network(x_t, sigma), sigma)
    expected = sample(network, noise, sigmas, sampler, torch.Generator().manual_seed(6))
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=0)


def test_guidance_of_one_is_the_conditional_model() -> None:
    unconditional, conditional = torch.randn(2, *SHAPE).double()
    one = torch.ones(SHAPE[0]).double()
    torch.testing.assert_close(guided_velocity(unconditional, conditional, one), conditional)
    torch.testing.assert_close(guided_velocity(unconditional, conditional, 0 * one), unconditional)
