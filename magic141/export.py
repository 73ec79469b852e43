"""Exports a run's student as one self-contained folder that turns an image and a prompt into a video."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from pydantic import Field

from magic141.artifacts.publication import link_or_copy
from magic141.data.dataset import NULL_TEXT_FILE, load_null_text
from magic141.data.info import load_info
from magic141.data.sizes import Size
from magic141.data.videos.video import fit_nearest
from magic141.diffusion.long_video import num_windows_for
from magic141.errors import UserError
from magic141.frozen import FrozenConfig
from magic141.models.config import Sampler, TransformerConfig
from magic141.models.device import refuse_large_on_cpu
from magic141.models.encoders import Encoders
from magic141.models.frames import num_latent_frames
from magic141.models.generator import VideoGenerator
from magic141.models.sampling import SamplingSettings
from magic141.models.transformer import load_for_sampling, load_transformer
from magic141.models.vae import VideoCodec, load_codec
from magic141.stage_log import StageLog
from magic141.training.dmd2.config import Dmd2Config

BUNDLE_FILE = "magic141.json"


class BundleInfo(FrozenConfig):
    """How the exported student is sampled."""

    height: int = Field(description="frame height in pixels")
    width: int = Field(description="frame width in pixels")
    fps: float = Field(description="frames per second")
    window_frames: int = Field(description="pixel frames of a window")
    num_steps: int = Field(description="network evaluations per window")
    shift: float = Field(description="shift of the time grid")
    sampler: Sampler = Field(description="the chain that makes a window")
    guidance_scale: float = Field(description="w, an input of the student")
    num_carried: int = Field(description="latent frames carried from window to window in long videos")
    more_sizes: tuple[Size, ...] = Field((), description="further [height, width] that training clips had")

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All sizes of its videos; a picture's video has the one nearest to the picture's shape."""
        return (Size(self.height, self.width), *self.more_sizes)


def export_pipeline(
    config: TransformerConfig,
    dmd2: Dmd2Config,
    num_carried: int,
    data: Path,
    student: Path,
    out: Path,
    log: StageLog,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes transformer, vae, encoders, scheduler, empty prompt and `magic141.json` into `out`.

    Weights are hard links to the stages' artifacts if the file system allows it: artifacts never change. Only a
    transformer in another precision than float32, in which it was trained, is written anew.
    """
    info = load_info(data)
    for source, target in ((data / "codec", "vae"), (data / "encoders", "encoders")):
        shutil.copytree(source, out / target, copy_function=link_or_copy)
    if dtype == torch.float32:
        shutil.copytree(student / "transformer", out / "transformer", copy_function=link_or_copy)
    else:
        load_transformer(student / "transformer", dtype).save_pretrained(out / "transformer")
    link_or_copy(str(data / NULL_TEXT_FILE), str(out / NULL_TEXT_FILE))
    FlowMatchEulerDiscreteScheduler(shift=dmd2.shift).save_pretrained(out / "scheduler")
    bundle = BundleInfo(
        height=info.height,
        width=info.width,
        fps=info.fps,
        window_frames=config.window_frames,
        num_steps=dmd2.num_inference_steps,
        shift=dmd2.shift,
        sampler=dmd2.sampler,
        guidance_scale=dmd2.student_guidance_scale,
        num_carried=num_carried,
        more_sizes=info.more_sizes_found,
    )
    (out / BUNDLE_FILE).write_text(bundle.model_dump_json(indent=1))
    size_mb = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 2**20
    log.summary({"bundle_mb": size_mb, "num_steps": bundle.num_steps})


@dataclass(frozen=True)
class Bundle:
    """A loaded export of a student."""

    info: BundleInfo
    generator: VideoGenerator
    codec: VideoCodec
    encoders: Encoders

    def generate(
        self, image: NDArray[np.uint8], prompt: str, seconds: float | None = None, seed: int = 0
    ) -> NDArray[np.uint8]:
        """Animates an image.

        Args:
            image: uint8 [H, W, 3] of any size; resized and centre-cropped to the video's size.
            prompt: what happens in the video.
            seconds: length; None for one window. Longer videos chain windows.
            seed: seed of the noise.

        Returns:
            uint8 [F, H, W, 3].

        Raises:
            UserError: if the prompt is empty or `seconds` not positive.
        """
        if not prompt.strip():
            raise UserError("prompt is empty: expected a description of what happens in the video")
        if seconds is not None and seconds <= 0:
            raise UserError(f"seconds = {seconds}: expected a positive length")
        num_frames = self.info.window_frames if seconds is None else max(2, round(seconds * self.info.fps))
        fitted = torch.tensor(fit_nearest(image, self.info.sizes))[None]  # a copy: images are read-only
        first_latent = self.codec.encode_video(fitted[:, None])
        latents = self.generator.chain(
            self.encoders.encode_text([prompt]).to(first_latent.device),
            self.encoders.encode_image(fitted).to(first_latent.device),
            first_latent,
            self._num_windows(num_frames),
            self.info.num_carried,
            seed,
        )
        frames: NDArray[np.uint8] = self.codec.decode_video(latents)[0].cpu().numpy()
        return frames[:num_frames]

    def _num_windows(self, num_frames: int) -> int:
        latent_frames = num_latent_frames(num_frames, self.codec.temporal_factor)
        return num_windows_for(latent_frames, self.generator.latent_frames, self.info.num_carried)


def load_bundle_info(folder: Path) -> BundleInfo:
    """Reads how an exported student is sampled.

    Raises:
        UserError: if the folder is not an exported student.
    """
    file = folder / BUNDLE_FILE
    if not file.is_file():
        raise UserError(f"{folder}: not an exported model; expected {BUNDLE_FILE} in it; use a publish artifact")
    return BundleInfo.model_validate_json(file.read_text())


def load_bundle(folder: Path, device: torch.device) -> Bundle:
    """Loads what `export_pipeline` wrote, onto `device`.

    Raises:
        UserError: if the folder is not an exported student, or the student is too large for a machine without a GPU.
    """
    info = load_bundle_info(folder)
    refuse_large_on_cpu(folder / "transformer", device, "run it on a machine with one")
    codec = load_codec(folder / "vae")
    codec.to(device)
    generator = VideoGenerator(
        model=load_for_sampling(folder / "transformer", device),
        null_text=load_null_text(folder).to(device),
        latent_frames=num_latent_frames(info.window_frames, codec.temporal_factor),
        settings=SamplingSettings(info.num_steps, info.shift, info.guidance_scale, "embedded", info.sampler),
    )
    return Bundle(info, generator, codec, Encoders.load(folder / "encoders", device))
