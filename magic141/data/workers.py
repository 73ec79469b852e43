"""The steps that Ray Data's workers run; heavy imports are local, so that decoding alone needs no torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from magic141.artifacts.digests import digest_file
from magic141.artifacts.fingerprint import CodeStamp
from magic141.data.config import DataConfig
from magic141.data.sources.clips import Clip, probe_video, render_anchors, render_chunk
from magic141.data.sources.listing import BadFile, VideoFile
from magic141.data.videos.decoding import BadVideo, storage_error
from magic141.data.videos.pixels import Frames

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]
PIXELS = "frames"  # a field of held-out clips alone
MAX_ENCODE_VALUES = 2**24  # pixels times channels in one forward pass of the codec


@dataclass(frozen=True)
class Probe:
    """Row {file, caption} -> {num_frames, aspect, cuts (JSON), digest, reason}; reason is empty for a usable video."""

    folder: Path
    config: DataConfig
    code: CodeStamp

    def __call__(self, row: Row) -> Row:  # noqa: D102 (see the class)
        self.code.require()
        require_folder(self.folder)
        result = probe_video(self.folder, VideoFile(row["file"], row["caption"]), self.config)
        if isinstance(result, BadFile):
            return {"num_frames": 0, "aspect": 0.0, "cuts": "[]", "digest": "", "reason": result.reason}
        digest = digest_file(self.folder / row["file"])  # little beside decoding, which just read it
        found = {"num_frames": result.num_frames, "aspect": result.aspect, "cuts": json.dumps(result.cuts)}
        return {**found, "digest": digest, "reason": ""}


class Rendered(NamedTuple):
    """A chunk's pixels: frames uint8 [N, F, H, W, 3] and anchors uint8 [N, H, W, 3] of the clips without a reason."""

    frames: Frames
    anchors: Frames
    reasons: list[str]  # one a clip of the chunk; empty for a good one

    @classmethod
    def nothing(cls, config: DataConfig, clip: Clip, reasons: list[str]) -> Rendered:
        """No pixels of clips like `clip`."""
        frames = np.zeros((0, config.num_frames, *clip.size(config), 3), np.uint8)
        return cls(frames, frames[:, 0], reasons)


def render_good(chunk: Sequence[Clip], config: DataConfig) -> Rendered:
    """Renders the clips of a chunk that can be; the others' file is at fault, and the reason says how.

    Raises:
        StorageError: the file cannot be read, which says nothing about what is in it.
    """
    try:
        return _render(chunk, config)
    except BadVideo:
        pass
    frames, anchors, reasons = zip(*(_render_one(clip, config) for clip in chunk), strict=True)
    return Rendered(np.concatenate(frames), np.concatenate(anchors), [reason for each in reasons for reason in each])


def _render(chunk: Sequence[Clip], config: DataConfig) -> Rendered:
    return Rendered(render_chunk(chunk, config), render_anchors(chunk, config), [""] * len(chunk))


def _render_one(clip: Clip, config: DataConfig) -> Rendered:
    try:
        return _render([clip], config)
    except BadVideo as error:
        return Rendered.nothing(config, clip, [error.reason])


@dataclass(frozen=True)
class Render:
    """Row {number, clips: JSON, text_only} -> the same with frames, anchors, reasons (JSON) as `Rendered` has them."""

    config: DataConfig
    code: CodeStamp

    def __call__(self, row: Row) -> Row:  # noqa: D102 (see the class)
        self.code.require()
        if self.config.folder is not None:
            require_folder(self.config.folder)
        clips = parse_clips(row["clips"])
        text_only = Rendered.nothing(self.config, clips[0], [""] * len(clips))
        rendered = text_only if row["text_only"] else render_good(clips, self.config)
        return {**row, **rendered._asdict(), "reasons": json.dumps(rendered.reasons)}


class Encode:
    """Row of `Render` -> {number, reasons: JSON, pixels: JSON, tensors: safetensors}; one actor holds the encoders.

    Of every clip, there is the reason why it is in no tensor, or an empty text, and the digest of its pixels, where
    these were encoded. Floats are stored without loss, in the precision that they were computed in: on a GPU in half of
    float32's bytes.
    """

    def __init__(self, folder: Path, use_gpu: bool, code: CodeStamp) -> None:
        import torch

        from magic141.models.encoders import Encoders
        from magic141.models.vae import load_codec

        if not use_gpu:
            torch.set_num_threads(1)
        device = torch.device("cuda" if use_gpu else "cpu")
        self.codec = load_codec(folder / "codec")
        self.codec.to(device)
        self.encoders = Encoders.load(folder / "encoders", device)
        self.code = code

    def __call__(self, row: Row) -> Row:  # noqa: D102 (see the class)
        from safetensors.torch import save

        self.code.require()  # not in __init__: Ray would report the error as the death of an actor
        reasons, frames = json.loads(row["reasons"]), row["frames"]
        clips = [clip for clip, reason in zip(parse_clips(row["clips"]), reasons, strict=True) if not reason]
        tensors = self._encode_text(clips) if clips else {}
        if len(frames):
            tensors |= self._encode_pictures(frames, row["anchors"], clips[0].split)
        faults = find_overflows(tensors, len(clips))
        found, digests = iter(faults), map(digest_pixels, frames)
        return {
            "number": row["number"],
            "pixels": json.dumps(["" if reason else next(digests, "") for reason in reasons]),
            "reasons": json.dumps([reason or next(found) for reason in reasons]),
            "tensors": save(_finite(tensors, faults)),
        }

    def _encode_text(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        text, parts = self.encoders.encode_text([clip.caption for clip in clips]), self.encoders.parts
        return {  # in the precision that they were computed in; the encoders return float32
            "text_tokens": text.tokens.to(parts.text_encoder.dtype).contiguous(),
            "text_mask": text.mask.contiguous(),
            "pooled": text.pooled.to(parts.text_encoder_2.dtype).contiguous(),
        }

    def _encode_pictures(self, frames: Frames, anchor_frames: Frames, split: str) -> dict[str, Tensor]:
        import torch

        pixels, anchors = torch.from_numpy(frames.copy()), torch.from_numpy(anchor_frames.copy())
        precision = self.encoders.parts.text_encoder.dtype
        tensors = {
            "latents": self._encode_videos(pixels),
            "first_latent": self._encode_videos(pixels[:, :1]),
            "anchor": self._encode_videos(anchors[:, None]),
            "anchor_tokens": self.encoders.encode_image(anchors).to(precision).contiguous(),
            "image_tokens": self.encoders.encode_image(pixels[:, 0]).to(precision).contiguous(),
            "first_frame": pixels[:, 0].clone(),
        }
        return {**tensors, PIXELS: pixels} if split == "heldout" else tensors

    def _encode_videos(self, pixels: Tensor) -> Tensor:
        """Latents of uint8 [N, F, H, W, 3] in the codec's precision, as many clips at once as memory allows."""
        import torch

        batch_size = max(1, MAX_ENCODE_VALUES // pixels[0].numel())
        latents = [self.codec.encode_video(batch).to(self.codec.vae.dtype).cpu() for batch in pixels.split(batch_size)]
        return torch.cat(latents).contiguous()


def require_folder(folder: Path) -> None:
    """On a machine that does not have the videos' folder every video would look missing.

    Raises:
        StorageError: this machine does not have it.
    """
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise storage_error(f"data.path = {folder}", error) from error


def parse_clips(text: str) -> list[Clip]:
    """The clips of a chunk from its JSON."""
    return [Clip.from_dict(values) for values in json.loads(text)]


def find_overflows(tensors: Mapping[str, Tensor], num_clips: int) -> list[str]:
    """Per clip which of its tensors are not finite, as a reason to leave it out; empty for a good one.

    Half precision overflows on some pictures. Training would lose every update with such a clip, and DMD2 its fake
    score.
    """
    broken: list[list[str]] = [[] for _ in range(num_clips)]
    for name, tensor in tensors.items():
        finite = tensor.isfinite().flatten(1).all(1).tolist() if tensor.is_floating_point() else [True] * num_clips
        for names, is_finite in zip(broken, finite, strict=True):
            if not is_finite:
                names.append(name)
    return [f"encoded to numbers that are not finite ({', '.join(names)})" if names else "" for names in broken]


def _finite(tensors: Mapping[str, Tensor], faults: Sequence[str]) -> dict[str, Tensor]:
    """The rows of the clips without a fault; no tensors if there is none."""
    good = [number for number, fault in enumerate(faults) if not fault]
    if len(good) == len(faults):
        return dict(tensors)
    return {name: tensor[good] for name, tensor in tensors.items()} if good else {}


def digest_pixels(frames: Frames) -> str:
    """sha256 of a clip's pixels."""
    return hashlib.sha256(frames.tobytes()).hexdigest()
