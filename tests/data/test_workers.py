"""What encoders computed is stored as it is, and not at all where it is no number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from magic141.artifacts.fingerprint import CodeStamp
from magic141.data.config import DataConfig
from magic141.data.sources.chunks import Chunk, Group, Place
from magic141.data.sources.clips import Clip, render_anchors, render_chunk, sample_shapes
from magic141.data.sources.splits import SPLITS
from magic141.data.workers import Encode, Render
from magic141.models.config import EncoderConfig
from magic141.models.encoders import Encoders
from magic141.models.vae import VideoCodec
from tests.evaluation.artifacts import make_data
from tests.models.tiny import tiny_checkpoint, tiny_vae

CODE = CodeStamp(())
CONFIG = DataConfig.model_validate({"shapes": {"num_train": 1, "num_validation": 1, "num_heldout": 2}, "num_frames": 5})
CLIPS = sample_shapes(CONFIG, seed=0)[2:]
THREE = [*CLIPS, sample_shapes(CONFIG, seed=1)[2]]
FLOATS = ("latents", "anchor", "anchor_tokens", "text_tokens", "pooled", "image_tokens")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("hunyuan"), [clip.caption for clip in CLIPS])
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    Encoders.fit([], EncoderConfig(kind="hunyuan", path=str(checkpoint)), 0, images).save(folder / "encoders")
    VideoCodec(tiny_vae()).save(folder / "codec")
    return folder


def chunk_of(clips: list[Clip], text_only: bool = False) -> dict[str, Any]:
    return Chunk(Place(0, Group(clips[0].split), 0), clips, text_only).row


def encoded(encode: Encode) -> dict[str, torch.Tensor]:
    row = chunk_of(CLIPS)
    tensors: dict[str, torch.Tensor] = load(encode(Render(CONFIG, CODE)(row))["tensors"])
    return tensors


def test_the_shapes_world_needs_no_folder_even_if_one_is_set() -> None:
    row = chunk_of(CLIPS)
    leftover = CONFIG.model_copy(update={"path": Path("/nowhere")})
    rendered, expected = (Render(config, CODE)(row) for config in (leftover, CONFIG))
    assert all(np.array_equal(rendered[name], expected[name]) for name in ("frames", "anchors"))
    assert leftover.folder is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_stored_in_the_precision_that_they_have_and_without_loss(
    models: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Encode(models, use_gpu=False, code=CODE)
    for model in (encode.codec.vae, encode.encoders.parts.text_encoder, encode.encoders.parts.text_encoder_2):
        model.to(dtype)
    said: dict[str, Any] = {}
    encode_text, encode_video = encode.encoders.encode_text, encode.codec.encode_video
    monkeypatch.setattr(encode.encoders, "encode_text", lambda texts: said.setdefault("text", encode_text(texts)))
    monkeypatch.setattr(encode.codec, "encode_video", lambda pixels: said.setdefault("video", encode_video(pixels)))
    tensors = encoded(encode)
    assert {name: tensors[name].dtype for name in FLOATS} == dict.fromkeys(FLOATS, dtype)
    assert torch.equal(tensors["latents"].float(), said["video"])
    assert torch.equal(tensors["text_tokens"].float(), said["text"].tokens)
    assert torch.equal(tensors["pooled"].float(), said["text"].pooled)
    assert tensors["frames"].dtype == torch.uint8
    assert tensors["text_mask"].dtype == torch.bool


def test_a_worker_without_a_gpu_encodes_on_the_cpu_of_a_machine_that_has_one(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    encode = Encode(models, use_gpu=False, code=CODE)
    assert encode.encoders.parts.text_encoder.device.type == "cpu"
    assert encode.encoders.parts.text_encoder.dtype == torch.float32


def test_a_first_frame_is_encoded_alone_since_a_vae_that_sees_its_clip_tells_of_it(models: Path) -> None:
    encode = Encode(models, use_gpu=False, code=CODE)
    tensors = encoded(encode)
    alone = encode.codec.encode_video(tensors["first_frame"][:, None])
    torch.testing.assert_close(tensors["first_latent"], alone)
    assert (tensors["latents"][:, :, :1] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("split", SPLITS)
def test_an_anchor_is_encoded_from_a_frame_of_its_own(tmp_path: Path, split: str) -> None:
    config = DataConfig.model_validate({"shapes": {"num_train": 3, "num_validation": 3, "num_heldout": 3}})
    clips = [clip for clip in sample_shapes(config, seed=0) if clip.split == split]
    frames, anchors = render_chunk(clips, config), render_anchors(clips, config)
    encode = Encode(make_data(tmp_path / "data"), use_gpu=False, code=CODE)
    pictures = {"reasons": json.dumps([""] * 3), "frames": frames, "anchors": anchors}
    row = encode({**chunk_of(clips), **pictures})
    made, codec, encoders = load(row["tensors"]), encode.codec, encode.encoders
    own, first = torch.from_numpy(anchors), torch.from_numpy(frames[:, 0])
    torch.testing.assert_close(made["anchor"], codec.encode_video(own[:, None]))
    torch.testing.assert_close(made["anchor_tokens"], encoders.encode_image(own))
    torch.testing.assert_close(made["image_tokens"], encoders.encode_image(first))
    assert torch.equal(made["first_frame"], first)
    assert ("frames" in made) == (split == "heldout"), "nobody looks at the others' pixels"


@pytest.mark.parametrize("broken", [[1], [0, 2]])
@pytest.mark.parametrize(
    ("network", "method", "names"),
    [
        ("codec", "encode_video", "latents, first_latent, anchor"),
        ("encoders", "encode_image", "anchor_tokens, image_tokens"),
    ],
)
def test_a_clip_that_overflows_is_left_out_with_a_reason_and_the_others_stay(
    models: Path, monkeypatch: pytest.MonkeyPatch, network: str, method: str, names: str, broken: list[int]
) -> None:
    encode = Encode(models, use_gpu=False, code=CODE)
    row = Render(CONFIG, CODE)(chunk_of(THREE))
    whole = load(encode(row)["tensors"])
    real = getattr(getattr(encode, network), method)

    def overflowing(pixels: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = real(pixels)
        result[broken, ..., 0] = float("inf")
        return result

    monkeypatch.setattr(getattr(encode, network), method, overflowing)
    found = encode(row)
    reasons = json.loads(found["reasons"])
    kept = [number for number in range(3) if number not in broken]
    assert [number for number, reason in enumerate(reasons) if not reason] == kept
    assert reasons[broken[0]] == f"encoded to numbers that are not finite ({names})"
    tensors = load(found["tensors"])
    assert tensors.keys() == whole.keys()
    assert all(torch.equal(tensors[name], whole[name][kept]) for name in whole)


def test_a_chunk_of_which_nothing_is_finite_has_no_tensors(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encode(models, use_gpu=False, code=CODE)
    text = encode.encoders.encode_text
    monkeypatch.setattr(
        encode.encoders, "encode_text", lambda texts: replace(text(texts), pooled=text(texts).pooled / 0)
    )
    row = Render(CONFIG, CODE)(chunk_of(CLIPS))
    found = encode(row)
    assert json.loads(found["reasons"]) == ["encoded to numbers that are not finite (pooled)"] * 2
    assert load(found["tensors"]) == {}


def test_where_only_captions_are_new_no_picture_is_rendered_or_encoded(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Encode(models, use_gpu=False, code=CODE)
    whole = encoded(encode)
    monkeypatch.setattr(encode.codec, "encode_video", lambda pixels: pytest.fail("encoded"))
    monkeypatch.setattr(encode.encoders, "encode_image", lambda pixels: pytest.fail("encoded"))
    monkeypatch.setattr("magic141.data.workers.render_good", lambda clips, config: pytest.fail("rendered"))
    found = encode(Render(CONFIG, CODE)(chunk_of(CLIPS, text_only=True)))
    tensors = load(found["tensors"])
    assert tensors.keys() == {"text_tokens", "text_mask", "pooled"}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())
    assert (json.loads(found["reasons"]), json.loads(found["pixels"])) == (["", ""], ["", ""])
