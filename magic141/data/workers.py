"""The steps that Ray Data's workers run; heavy imports are local, so that decoding alone needs no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magic141.data.clips import BadFile, Clip, VideoFile, probe_video, render_anchors, render_chunk
from magic141.data.config import DataConfig
from magic141.data.video import Frames
from magic141.fingerprint import CodeStamp

Row = dict[str, Any]
MAX_ENCODE_VALUES = 2**24  # pixels times channels in one forward pass of the codec


@dataclass(frozen=True)
class Probe:
    """Row {file, caption} -> {num_frames, reason}; reason is empty for a usable video."""

    folder: Path
    config: DataConfig
    code: CodeStamp

    def __call__(self, row: Row) -> Row:  # noqa: D102 (see the class)
        self.code.require()
        result = probe_video(self.folder, VideoFile(row["file"], row["caption"]), self.config)
        bad = isinstance(result, BadFile)
        return {"num_frames": 0 if bad else result, "reason": result.reason if isinstance(result, BadFile) else ""}


@dataclass(frozen=True)
class Render:
    """Row {clips: JSON} -> {clips, frames: uint8 [N, F, H, W, 3], anchors: uint8 [N, H, W, 3]}."""

    config: DataConfig
    code: CodeStamp

    def __call__(self, row: Row) -> Row:  # noqa: D102 (see the class)
        self.code.require()
        chunk = parse_clips(row["clips"])
        return {
            "clips": row["clips"],
            "frames": render_chunk(chunk, self.config),
            "anchors": render_anchors(chunk, self.config),
        }


class Encode:
    """Row {clips, frames, anchors} -> {clips, ids: JSON, tensors: safetensors}; an actor that holds the encoders."""

    def __init__(self, folder: Path, use_gpu: bool, code: CodeStamp) -> None:
        import torch

        from magic141.models.encoders import Encoders
        from magic141.models.vae import load_codec

        torch.set_num_threads(1 if not use_gpu else torch.get_num_threads())
        self.codec = load_codec(folder / "codec")
        if use_gpu:
            self.codec.to(torch.device("cuda"))
        self.encoders = Encoders.load(folder / "encoders")
        self.code = code

    def __call__(self, row: Row) -> Row:  # noqa: D102 (see the class)
        from safetensors.torch import save

        self.code.require()  # not in __init__: Ray would report the error as the death of an actor
        clips, frames = parse_clips(row["clips"]), row["frames"]
        tensors = self._encode(frames, row["anchors"], clips)
        return {
            "clips": row["clips"],
            "ids": json.dumps([content_id(pixels, clip.caption) for pixels, clip in zip(frames, clips, strict=True)]),
            "tensors": save(tensors),
        }

    def _encode(self, frames: Frames, anchor_frames: Frames, clips: list[Clip]) -> dict[str, Any]:
        import torch

        pixels, anchors = torch.from_numpy(frames.copy()), torch.from_numpy(anchor_frames.copy())
        text = self.encoders.encode_text([clip.caption for clip in clips])
        tensors = {
            "latents": self._encode_videos(pixels),
            "anchor": self._encode_videos(anchors[:, None]),
            "anchor_tokens": self.encoders.encode_image(anchors).contiguous(),
            "text_tokens": text.tokens.contiguous(),
            "text_mask": text.mask.contiguous(),
            "pooled": text.pooled.contiguous(),
            "image_tokens": self.encoders.encode_image(pixels[:, 0]).contiguous(),
            "first_frame": pixels[:, 0].clone(),
        }
        return tensors if clips[0].split == "train" else {**tensors, "frames": pixels}

    def _encode_videos(self, pixels: Any) -> Any:
        """Latents of uint8 [N, F, H, W, 3], encoding at most `MAX_ENCODE_VALUES` at once, but at least one clip."""
        import torch

        batch_size = max(1, MAX_ENCODE_VALUES // pixels[0].numel())
        latents = [self.codec.encode_video(batch).float().cpu() for batch in pixels.split(batch_size)]
        return torch.cat(latents).contiguous()


def parse_clips(text: str) -> list[Clip]:
    """The clips of a chunk from its JSON."""
    return [Clip.from_dict(values) for values in json.loads(text)]


def content_id(frames: Frames, caption: str) -> str:
    """Hash of pixels and caption, used as the clip's id in the manifest."""
    digest = hashlib.sha256(frames.tobytes())
    digest.update(caption.encode())
    return digest.hexdigest()[:32]
