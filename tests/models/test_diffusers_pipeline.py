"""A transformer trained here is one that diffusers' own image-to-video pipeline runs, with the same result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
)
from PIL import Image
from torch import Tensor

from magic141.diffusion.flow import sigma_grid
from magic141.diffusion.samplers import sample
from magic141.models.transformer import make_prefix, velocity
from magic141.models.vae import VideoCodec
from tests.models.tiny import CHANNELS, tiny_bundle, tiny_checkpoint, tiny_inputs, tiny_transformer, tiny_vae

NUM_STEPS, SHIFT, GUIDANCE = 4, 5.0, 2.0
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
SIZE, NUM_FRAMES = 32, 9  # 4 x 4 latents, 3 latent frames


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLHunyuanVideo:
    return tiny_vae()


@pytest.mark.parametrize("guidance_embeds", [False, True])
def test_diffusers_pipeline_makes_the_same_video(vae: AutoencoderKLHunyuanVideo, guidance_embeds: bool) -> None:
    model = tiny_transformer(image_condition=True, guidance_embeds=guidance_embeds)
    cond = tiny_inputs(batch=1)[2]
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    noise = torch.randn(1, CHANNELS, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    pipeline = HunyuanVideoImageToVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=model,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image=Image.fromarray(pixels),
        prompt_embeds=cond.tokens,
        prompt_attention_mask=cond.mask,
        pooled_prompt_embeds=cond.pooled,
        latents=noise,
        height=SIZE,
        width=SIZE,
        num_frames=NUM_FRAMES,
        num_inference_steps=NUM_STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).frames

    first = VideoCodec(vae).encode_video(torch.from_numpy(pixels)[None, None])
    start = 0.999 * noise + 0.001 * first  # theirs begins a little below pure noise
    prefix = make_prefix(first.expand(-1, -1, 3, -1, -1), 1)
    w = torch.full((1,), GUIDANCE) if guidance_embeds else None

    def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
        return velocity(model, x_t, sigma, cond, prefix, w)

    with torch.no_grad():
        ours = sample(predict, start, sigma_grid(NUM_STEPS, SHIFT), "euler", torch.Generator())
    torch.testing.assert_close(ours[:, :, 1:], theirs, atol=1e-4, rtol=1e-4)


def test_the_documented_lines_sample_a_published_student_as_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundle(tiny_checkpoint(tmp_path / "checkpoint", ["the cat jumps"]), tmp_path)
    Image.new("RGB", (50, 40)).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"## In diffusers\n.*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    pipeline = names["pipeline"]
    assert [frame.size for frame in names["video"]] == [(32, 32)] * (13 - 4)
    torch.testing.assert_close(pipeline.scheduler.sigmas.cpu(), sigma_grid(4, 5.0))
    assert pipeline.guidance_scale == names["info"].guidance_scale
