"""A published folder holds all that it needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from magic141.export import export_pipeline, load_bundle
from magic141.models.encoders import Encoders
from magic141.models.sampling import SamplingSettings
from magic141.models.transformer import load_transformer
from magic141.stage_log import NullLog
from magic141.training.dmd2.config import Dmd2Config
from tests.models.tiny import CONFIG, tiny_bundle, tiny_checkpoint

PROMPT = "the cat jumps"
CPU = torch.device("cpu")


@pytest.mark.parametrize("downloaded", [False, True])
def test_a_bundle_needs_neither_the_checkpoint_nor_its_place(tmp_path: Path, downloaded: bool) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "HunyuanVideo-I2V", [PROMPT])
    if downloaded:  # as the Hugging Face cache has it: links to files elsewhere
        checkpoint.rename(tmp_path / "blobs")
        shutil.copytree(tmp_path / "blobs", checkpoint, copy_function=lambda old, new: Path(new).symlink_to(old))
    published = tiny_bundle(checkpoint, tmp_path / "made")
    weights = "text_encoder/model.safetensors"
    assert (published / "encoders" / weights).samefile(checkpoint / weights)  # no second copy on this file system
    expected = Encoders.load(published / "encoders", CPU).encode_text([PROMPT])
    moved = published.rename(tmp_path / "elsewhere")
    for path in ("HunyuanVideo-I2V", "made", "blobs"):
        shutil.rmtree(tmp_path / path, ignore_errors=True)
    bundle = load_bundle(moved, CPU)
    assert torch.equal(bundle.encoders.encode_text([PROMPT]).tokens, expected.tokens)
    image = np.zeros((40, 40, 3), np.uint8)
    assert bundle.generate(image, PROMPT).shape == (13, 32, 32, 3)
    assert bundle.generate(image, PROMPT, seconds=15 / bundle.info.fps).shape == (15, 32, 32, 3)


def test_long_videos_carry_as_many_frames_as_was_judged(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "HunyuanVideo-I2V", [PROMPT])
    for carried, frames in ((1, 13 + 8), (2, 13 + 4)):  # of two windows of 13 frames, which are 4 latent ones
        bundle = load_bundle(tiny_bundle(checkpoint, tmp_path / str(carried), carried), CPU)
        assert bundle.info.num_carried == carried
        assert bundle._num_windows(13) == 1
        assert (bundle._num_windows(frames), bundle._num_windows(frames + 1)) == (2, 3)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_bundle_is_sampled_as_the_student_was_trained(tmp_path: Path, sampler: str) -> None:
    tiny_bundle(tiny_checkpoint(tmp_path / "HunyuanVideo-I2V", [PROMPT]), tmp_path)
    sampling = {"num_inference_steps": 3, "shift": 6.0, "sampler": sampler, "student_guidance_scale": 1.8}
    dmd2 = Dmd2Config.model_validate({**sampling, "score_shift": 2.0, "real_guidance_scale": 2.5})
    config = CONFIG.model_copy(update={"window_frames": 13})
    export_pipeline(config, dmd2, 2, tmp_path / "data", tmp_path / "student", tmp_path / "out", NullLog())
    made = load_bundle(tmp_path / "out", CPU).generator
    assert made.settings == SamplingSettings(3, 6.0, 1.8, "embedded", sampler)  # type: ignore[arg-type]
    assert made.latent_frames == 4


def test_a_student_in_bfloat16_takes_half_and_is_what_a_gpu_samples(tmp_path: Path) -> None:
    published = tiny_bundle(tiny_checkpoint(tmp_path / "HunyuanVideo-I2V", [PROMPT]), tmp_path, dtype=torch.bfloat16)
    trained, written = tmp_path / "student" / "transformer", published / "transformer"
    sizes = [(folder / "diffusion_pytorch_model.safetensors").stat().st_size for folder in (trained, written)]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    sampled = load_transformer(trained, torch.bfloat16).state_dict()
    for name, weight in load_transformer(written, torch.bfloat16).state_dict().items():
        assert torch.equal(weight, sampled[name]), name
    assert load_bundle(published, CPU).generate(np.zeros((40, 40, 3), np.uint8), PROMPT).shape == (13, 32, 32, 3)
