"""Sampling with an exact velocity field: guidance, sampler, time grid and seed are the configured ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.diffusion.flow import expand, sigma_grid
from magic141.models.generator import VideoGenerator
from magic141.models.sampling import SamplingSettings
from magic141.models.text_embedding import TextEmbedding
from magic141.models.transformer import Conditioning, Prefix
from tests.diffusion.fields import velocity_to

STEPS, SHIFT, W = 4, 5.0, 2.0


def text(value: float, num: int) -> TextEmbedding:
    return TextEmbedding(torch.zeros(num, 1, 1), torch.ones(num, 1, dtype=torch.bool), torch.full((num, 1), value))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """What the network is evaluated at: a field that leads to the prompt's value, times w where it is an input."""
    calls = []

    def field(
        model: Any, x_t: Tensor, sigma: Tensor, cond: Any, prefix: Any = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        calls.append((x_t, sigma))
        value = cond.pooled[:, 0] * (1 if guidance_scale is None else guidance_scale)
        return velocity_to(expand(value, x_t), x_t, sigma)

    monkeypatch.setattr("magic141.models.generator.velocity", field)
    return calls


def make_generator(guidance: Any = "embedded", sampler: Any = "euler", latent_frames: int = 3) -> VideoGenerator:
    settings = SamplingSettings(STEPS, SHIFT, W, guidance, sampler)
    return VideoGenerator(torch.nn.Linear(1, 1), text(1.0, 1), latent_frames, settings)


def sample(guidance: Any, sampler: Any, seed: int = 0) -> Tensor:
    generator = make_generator(guidance, sampler)
    return generator.sample(text(3.0, 2), torch.zeros(2, 1, 1), torch.zeros(2, 1, 1, 2, 2), seed)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
@pytest.mark.parametrize(("guidance", "clip"), [("two_evaluations", 1 + W * (3 - 1)), ("embedded", 3 * W)])
def test_a_clip_is_what_the_guided_field_leads_to(
    seen: list[tuple[Tensor, Tensor]], guidance: str, clip: float, sampler: str
) -> None:
    x0 = sample(guidance, sampler)
    torch.testing.assert_close(x0, torch.full_like(x0, clip), rtol=1e-4, atol=1e-4)
    assert len(seen) == make_generator(guidance, sampler).settings.num_evaluations
    states = seen[:: 2 if guidance == "two_evaluations" else 1]
    torch.testing.assert_close(torch.stack([sigma[0] for _, sigma in states]), sigma_grid(STEPS, SHIFT)[:-1])
    noises = [(x_t - (1 - sigma[0]) * clip) / sigma[0] for x_t, sigma in states]
    for noise in noises[1:]:
        assert torch.allclose(noise, noises[0], atol=1e-3) == (sampler == "euler"), "only renoising draws afresh"


def test_every_seed_has_its_own_noise(seen: list[tuple[Tensor, Tensor]]) -> None:
    for seed in (0, 1, 0):
        sample("embedded", "euler", seed)
    first, other, again = (x_t for x_t, _ in seen[::STEPS])
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert min(float(x_t.min()) for x_t, _ in seen[::STEPS]) < -1, "standard normal"


def test_every_window_of_a_long_video_has_the_noise_of_the_next_seed(seen: list[tuple[Tensor, Tensor]]) -> None:
    generator = make_generator()
    given, done = (text(3.0, 2), torch.zeros(2, 1, 1), torch.zeros(2, 1, 1, 2, 2)), list[int]()
    generator.chain(*given, 2, 1, seed=4, on_window=lambda: done.append(len(seen)))
    assert done == [STEPS, 2 * STEPS]
    for seed in (4, 5):
        sample("embedded", "euler", seed)
    first, second, *expected = (x_t for x_t, _ in seen[::STEPS])
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])


def test_windows_made_together_go_on_from_frame_to_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the network counts on from the last frame that it is given, in the prompt's steps."""
    noises = []

    def field(model: Any, x_t: Tensor, sigma: Tensor, cond: Conditioning, prefix: Prefix, w: Tensor) -> Tensor:
        noises.append(x_t[:, :, 0])
        known = int(prefix.mask[0].sum(1).amax())
        fresh = torch.arange(1, x_t.shape[2] - known + 1).reshape(1, 1, -1, 1, 1) * expand(cond.pooled[:, 0], x_t)
        x0 = prefix.latents.clone()
        x0[:, :, known:] = x0[:, :, known - 1 : known] + fresh
        return velocity_to(x0, x_t, sigma)

    monkeypatch.setattr("magic141.models.generator.velocity", field)
    given = (text(3.0, 2), torch.zeros(2, 1, 1), torch.full((2, 1, 1, 2, 2), 7.0))
    video, *_ = (make_generator(latent_frames=4).fuse(*given, num_windows=3, num_carried=1, seed=s) for s in (0, 1, 0))
    expected = (7.0 + 3 * torch.arange(4 + 2 * 2)).reshape(1, 1, -1, 1, 1).expand(2, 1, -1, 2, 2)
    torch.testing.assert_close(video, expected, rtol=1e-3, atol=1e-3)
    first, other, again = noises[:: 3 * STEPS]
    assert torch.equal(first, again)
    assert not torch.allclose(first, other), "every seed has its own noise"


def test_the_same_generator_in_fewer_steps(seen: list[tuple[Tensor, Tensor]]) -> None:
    fewer = make_generator().in_steps(2)
    fewer.sample(text(3.0, 2), torch.zeros(2, 1, 1), torch.zeros(2, 1, 1, 2, 2), 0)
    torch.testing.assert_close(torch.stack([sigma[0] for _, sigma in seen]), sigma_grid(2, SHIFT)[:-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_in_bfloat16_multiplies_in_it(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    products: list[torch.dtype] = []

    def field(model: torch.nn.Linear, x_t: Tensor, *_: Any) -> Tensor:
        products.append(model(x_t[..., :1]).dtype)
        return x_t

    monkeypatch.setattr("magic141.models.generator.velocity", field)
    generator = replace(make_generator(), model=torch.nn.Linear(1, 1, dtype=dtype))
    clips = generator.sample(text(3.0, 2), torch.zeros(2, 1, 1), torch.zeros(2, 1, 1, 2, 2), 0)
    assert products == [dtype] * STEPS
    assert clips.dtype == torch.float32


def test_guidance_leaves_out_the_text_and_not_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions: list[Conditioning] = []

    def field(model: Any, x_t: Tensor, sigma: Tensor, cond: Conditioning, *_: Any) -> Tensor:
        conditions.append(cond)
        return x_t

    monkeypatch.setattr("magic141.models.generator.velocity", field)
    settings = SamplingSettings(1, SHIFT, W, "two_evaluations", "euler")
    generator = VideoGenerator(torch.nn.Linear(1, 1), text(1.0, 1), 3, settings)
    generator.sample(text(3.0, 2), torch.full((2, 1, 1), 7.0), torch.zeros(2, 1, 1, 2, 2), 0)
    with_text, without = conditions
    assert with_text.tokens.flatten().tolist() == without.tokens.flatten().tolist() == [7, 0, 7, 0]
    assert (with_text.pooled.flatten().tolist(), without.pooled.flatten().tolist()) == ([3, 3], [1, 1])
