"""Configs of `prepare_data`: source and clip geometry, beside those of codec and encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from magic141.data.sizes import Size, nearest_size
from magic141.frozen import FrozenConfig, placement, source_path
from magic141.models.config import CodecConfig, EncoderConfig

LARGEST_SIDE = 16384  # pixels: twice that of 8K video


class ShapesConfig(FrozenConfig):
    """The demo's procedural world: one captioned shape moving over a plain background, with exact ground truth."""

    num_train: int = Field(6000, ge=1, description="clips for training")
    num_validation: int = Field(128, ge=1, description="clips for validation (loss, best checkpoint)")
    num_heldout: int = Field(512, ge=1, description="clips for reporting only")
    exact_fraction: float = Field(
        0.5, ge=0, le=1, description="share of captions that name the exact direction; the others name only the axis"
    )


class DataConfig(FrozenConfig):
    """Source, clip geometry, codec and encoders of the corpus."""

    source: Literal["shapes", "folder"] = Field("shapes", description="shapes: the procedural world; folder: videos")
    path: Path | None = source_path(
        description="folder of videos with captions.jsonl (file, caption), or a .txt beside each video"
    )
    num_frames: int = Field(13, ge=1, description="frames of a stored clip, temporal_factor * k + 1")
    height: int = Field(32, ge=8, le=LARGEST_SIDE, description="frame height in pixels")
    width: int = Field(32, ge=8, le=LARGEST_SIDE, description="frame width in pixels")
    more_sizes: tuple[Size, ...] = Field(
        (),
        description="further heights and widths of training clips, such as [[960, 544]]: of all sizes a video takes "
        "the one nearest to its own shape; validation and held-out clips have the main size (folder)",
    )
    fps: float = Field(8.0, ge=0.01, le=1000, description="frames per second after resampling")
    cut_score: float | None = Field(
        10.0,
        gt=0,
        le=100,
        description="FFmpeg's scdet score, in percent, from which a frame begins a new scene: no clip spans two; null: "
        "cuts are not looked for (folder)",
    )
    stride_frames: int = Field(4, ge=1, description="frames between the starts of two windows of a video (folder)")
    heldout_fraction: float = Field(
        0.15,
        gt=0,
        lt=0.5,
        description="share of windows held out, and the same share again for validation: whole videos or, if there are "
        "few, their ends",
    )
    max_heldout_clips: int | None = Field(
        None, ge=1, description="most windows held out, whose pixels are stored, and most for validation (folder)"
    )
    held_out_by: Literal["video", "folder"] = Field(
        "video",
        description="what is held out as a whole: a video, or all videos of a subfolder, such as the scenes of a film",
    )
    on_bad_file: Literal["skip", "fail"] = Field(
        "skip",
        description="what to do with a file that is broken, too short, without a caption, or encoded to numbers that "
        "are not finite",
    )
    shapes: ShapesConfig = ShapesConfig()
    codec: CodecConfig = CodecConfig()
    encoder: EncoderConfig = EncoderConfig()
    shard_size: int = Field(512, ge=1, description="clips per shard file; fewer if they exceed 2 GiB")
    num_workers: int = placement(1, ge=1, description="parallel Ray Data encoders")
    num_gpus_per_worker: float = placement(0.0, ge=0, description="GPUs per encoder")

    @property
    def size(self) -> Size:
        """The size in which clips are judged."""
        return Size(self.height, self.width)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All sizes of training clips."""
        return (self.size, *self.more_sizes)

    def more_size_for(self, aspect: float) -> Size | None:
        """Which of `more_sizes` a video of width / height = `aspect` takes; None: height x width."""
        nearest = nearest_size(aspect, self.sizes)
        return None if nearest == self.size else nearest

    def clip_bytes(self, size: Size) -> int:
        """Bytes of a clip's pixels."""
        return self.num_frames * size.height * size.width * 3

    @property
    def is_random(self) -> bool:
        """Whether a seed decides anything: not where videos are encoded by HunyuanVideo's own models, at great cost."""
        return self.source == "shapes" or self.codec.kind != "hunyuan" or self.encoder.kind != "hunyuan"

    @property
    def folder(self) -> Path | None:
        """The folder of videos; None for the shapes world, whatever `path` is."""
        return self.path if self.source == "folder" else None

    @model_validator(mode="after")
    def _geometry(self) -> DataConfig:
        _, factor, spatial = self.codec.sizes
        if (self.num_frames - 1) % factor:
            near = (self.num_frames - 1) // factor * factor + 1
            raise ValueError(
                f"data.num_frames = {self.num_frames}: expected {factor}*k+1; use {near} or {near + factor}"
            )
        for side in ("height", "width"):
            if getattr(self, side) % spatial:
                raise ValueError(
                    f"data.{side} = {getattr(self, side)}: not divisible by the codec's spatial factor {spatial}; "
                    f"use a multiple of {spatial}"
                )
        self._check_more_sizes(spatial)
        if self.source == "folder" and self.path is None:
            raise ValueError("data.path is not set: source 'folder' needs a folder; use --set data.path=DIR")
        if self.codec.kind == "hunyuan" and self.codec.path is None:
            raise ValueError("data.codec.path is not set: kind 'hunyuan' needs a diffusers folder with a vae")
        if self.encoder.kind == "hunyuan" and self.encoder.path is None:
            raise ValueError("data.encoder.path is not set: kind 'hunyuan' needs a HunyuanVideo-I2V folder")
        return self

    def _check_more_sizes(self, spatial: int) -> None:
        """Raises ValueError for further sizes that no clip can have, or that no video would take."""
        if self.more_sizes and self.source != "folder":
            raise ValueError("data.more_sizes: the shapes world has clips of one size; expected []; leave it out")
        known: dict[float, Size] = {self.size.aspect: self.size}
        for size in self.more_sizes:
            if any(side % spatial or not 8 <= side <= LARGEST_SIDE for side in size):
                raise ValueError(
                    f"data.more_sizes: {size}: expected sides of 8 to {LARGEST_SIDE} pixels, divisible by the codec's "
                    f"spatial factor {spatial}"
                )
            if size.aspect in known:
                raise ValueError(
                    f"data.more_sizes: {size}: of the same shape as {known[size.aspect]}, which videos would take; "
                    "leave one of them out"
                )
            known[size.aspect] = size
