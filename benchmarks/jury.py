"""Fresh clips of the demo's world, on which settings are chosen: held-out clips are for reporting only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from magic141.config import PipelineConfig
from magic141.data.dataset import ClipDataset, load_null_text
from magic141.data.info import load_info
from magic141.data.shapes import ShapeClip, render_clip, sample_clip
from magic141.evaluation.generation.suite import Conditions, clip_seed
from magic141.evaluation.scoring.frechet import TubeSpace, frechet_distance
from magic141.evaluation.scoring.scorer import valid_futures
from magic141.evaluation.scoring.shapes import score_clips
from magic141.evaluation.variants import Variant
from magic141.models.encoders import Encoders
from magic141.models.frames import num_latent_frames
from magic141.models.text_embedding import TextEmbedding
from magic141.models.vae import VideoCodec, load_codec

STREAM = 141  # of random numbers; the splits of the corpus are drawn from streams 0, 1 and 2
BATCH = 32
SCORES = ("motion", "direction", "iou", "background_psnr_db", "plus")


@dataclass(frozen=True)
class Jury:
    """Clips whose captions leave the future open, encoded as the corpus is; Frechet distances are to their futures."""

    conditions: Conditions
    truths: list[dict[str, Any]]
    space: TubeSpace
    real: NDArray[np.float64]
    codec: VideoCodec
    null_text: TextEmbedding
    latent_frames: int

    @classmethod
    def open(cls, config: PipelineConfig, data: Path, num_clips: int, stream: int = STREAM) -> Self:
        """Draws and encodes `num_clips` clips with the codec and the encoders of the prepared corpus `data`."""
        latent_frames = num_latent_frames(config.model.window_frames, load_info(data).temporal_factor)
        world = config.data.shapes.model_copy(update={"exact_fraction": 0.0})
        rng = np.random.default_rng([config.seed, stream])
        clips = [sample_clip(rng, world) for _ in range(num_clips)]
        height, width = config.data.height, config.data.width
        frames = torch.from_numpy(np.stack([render_clip(c, config.model.window_frames, height, width) for c in clips]))
        truths = [clip.to_dict() for clip in clips]
        codec, encoders = load_codec(data / "codec"), Encoders.load(data / "encoders", torch.device("cpu"))
        first = codec.encode_video(frames[:, :1])
        train = ClipDataset.open(data, "train")
        space = TubeSpace.fit(train.latents, config.evaluate.frechet_dimensions, latent_frames)
        text, tokens = encoders.encode_text([clip.caption for clip in clips]), encoders.encode_image(frames[:, 0])
        return cls(
            Conditions(text, tokens, first),
            truths,
            space,
            space.project(valid_futures(truths, config.model.window_frames, height, width, codec)),
            codec,
            load_null_text(data),
            latent_frames,
        )

    @torch.no_grad()
    def judge(self, network: Any, variant: Variant, seed: int = 0) -> dict[str, float]:
        """Mean scores and Frechet distance of what a variant makes of the clips' first frames."""
        generator = variant.generator(network, self.null_text, self.latent_frames)
        latents = torch.cat(
            [
                generator.sample(part.text, part.image_tokens, part.prefix, clip_seed(seed, number))
                for number, part in enumerate(self.conditions.batches(BATCH))
            ]
        )
        frames = torch.cat([self.codec.decode_video(part) for part in latents.split(BATCH)])
        scores = score_clips(frames.numpy(), self.truths)
        figures = {name: float(np.nanmean(scores[name])) for name in SCORES}
        distance = frechet_distance(self.space.project(latents), self.real)
        return {**figures, "skew": skew(scores["plus"], self.truths), "frechet": distance}


def skew(plus: NDArray[np.float64], truths: Sequence[Mapping[str, Any]]) -> float:
    """How far the share of one of the two ways along an axis is from a half, mean of the axes, which their mean hides.

    Fair clips are not at 0: of 64 an axis at 0.05, of 256 at 0.025.

    Args:
        plus: of clips, 1 for one way and 0 for the other; NaN where it is neither [N].
        truths: of the same clips.
    """
    axes = np.array([ShapeClip.from_dict(truth).direction % 4 for truth in truths])
    return float(np.mean([abs(np.nanmean(plus[axes == axis]) - 0.5) for axis in np.unique(axes)]))
