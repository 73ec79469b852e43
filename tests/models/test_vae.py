"""Both codecs behind one interface: the demo's causal PCA, and HunyuanVideo's own VAE class at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from magic141.data.config import ShapesConfig
from magic141.data.shapes import render_clip, sample_clip
from magic141.errors import UserError
from magic141.models.config import CodecConfig
from magic141.models.vae import CausalPCACodec, VideoCodec, load_codec
from tests.models.tiny import tiny_vae

NUM_FRAMES = 9


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """uint8 [64, 9, 32, 32, 3] of the demo's world."""
    rng = np.random.default_rng(0)
    frames = [render_clip(sample_clip(rng, ShapesConfig()), NUM_FRAMES, 32, 32) for _ in range(64)]
    return torch.from_numpy(np.stack(frames))


@pytest.fixture(scope="module")
def pca(clips: torch.Tensor) -> VideoCodec:
    return VideoCodec(CausalPCACodec.fit(clips, CodecConfig(num_channels=40)))


@pytest.fixture(scope="module")
def hunyuan() -> VideoCodec:
    return VideoCodec(tiny_vae())


@pytest.fixture(params=["pca", "hunyuan"])
def codec(request: pytest.FixtureRequest) -> VideoCodec:
    found: VideoCodec = request.getfixturevalue(request.param)
    return found


def test_frames_become_latents_and_come_back_in_number_and_size(codec: VideoCodec, clips: torch.Tensor) -> None:
    latents = codec.encode_video(clips[:2])
    frames, size = (NUM_FRAMES - 1) // codec.temporal_factor + 1, 32 // codec.spatial_factor
    assert latents.shape == (2, codec.vae.config.latent_channels, frames, size, size)
    assert latents.dtype == torch.float32
    decoded = codec.decode_video(latents)
    assert decoded.shape == clips[:2].shape
    assert decoded.dtype == torch.uint8


def test_a_picture_is_a_video_of_one_frame_and_no_frame_sees_later_ones(pca: VideoCodec, clips: torch.Tensor) -> None:
    whole = pca.encode_video(clips[:2])  # HunyuanVideo's group norms do see the whole clip, but only its statistics
    torch.testing.assert_close(whole[:, :, :3], pca.encode_video(clips[:2, :5]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole[:, :, :1], pca.encode_video(clips[:2, :1]), atol=1e-4, rtol=1e-4)


def test_a_saved_codec_loads_equal(codec: VideoCodec, clips: torch.Tensor, tmp_path: Path) -> None:
    codec.save(tmp_path)
    loaded = load_codec(tmp_path)
    latents = codec.encode_video(clips[:1])
    assert torch.equal(loaded.encode_video(clips[:1]), latents)
    assert torch.equal(loaded.decode_video(latents), codec.decode_video(latents))


def test_the_vaes_scaling_factor_is_applied_and_undone(hunyuan: VideoCodec, clips: torch.Tensor) -> None:
    latents = hunyuan.encode_video(clips[:1])
    pixels = clips[:1].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        raw = hunyuan.vae.encode(pixels).latent_dist.mode()
        decoded = hunyuan.vae.decode(raw).sample
    torch.testing.assert_close(latents, raw * 0.476986)
    expected = ((decoded + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)
    assert (hunyuan.decode_video(latents)[0].permute(3, 0, 1, 2).int() - expected[0].int()).abs().max() <= 1


def test_pixels_do_not_depend_on_how_many_frames_are_made_at_once(
    pca: VideoCodec, clips: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = pca.encode_video(clips[:2])
    expected = ((pca.vae.decode(latents).sample + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)
    for num in (1, 4, 32):
        monkeypatch.setattr("magic141.models.vae.FRAMES_AT_ONCE", num)
        assert torch.equal(pca.decode_video(latents), expected.permute(0, 2, 3, 4, 1))


def test_pca_latents_have_unit_variance_and_keep_the_picture(pca: VideoCodec, clips: torch.Tensor) -> None:
    latents = pca.encode_video(clips)
    assert 0.8 < float(latents.std()) < 1.2
    error = (pca.decode_video(latents).float() - clips.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 30  # dB


def test_large_components_stay_larger_by_the_root_of_what_they_were(pca: VideoCodec, clips: torch.Tensor) -> None:
    """Half-whitened: a latent's deviation is, but for one factor, the root of its component's."""
    latents = pca.encode_video(clips)[:, :, 1:]
    components = latents * pca.vae.group_scale.reshape(-1, 1, 1, 1)
    ratios = latents.transpose(0, 1).flatten(1).std(1) / components.transpose(0, 1).flatten(1).std(1).sqrt()
    torch.testing.assert_close(ratios / ratios[0], torch.ones_like(ratios), atol=0.02, rtol=0)


def test_what_is_no_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match="AutoencoderKL; expected CausalPCACodec or AutoencoderKLHunyuanVideo"):
        load_codec(tmp_path)
