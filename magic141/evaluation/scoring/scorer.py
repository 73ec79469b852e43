"""Scores sets of clips that were generated from the same conditions, and real ones as ceilings."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from magic141.data.dataset import ClipDataset
from magic141.data.info import load_info
from magic141.data.psnr import psnr_db
from magic141.data.shapes import ShapeClip, other_future, render_clip
from magic141.evaluation.config import EvaluateConfig
from magic141.evaluation.scores import EXACT, FRECHET, Score
from magic141.evaluation.scoring.frechet import TubeSpace, frechet_distance, frechet_error
from magic141.evaluation.scoring.shapes import score_clips
from magic141.evaluation.scoring.vbench import score_folder
from magic141.models.device import sampling_device
from magic141.models.frames import num_pixel_frames
from magic141.models.vae import CausalPCACodec, VideoCodec, load_codec
from magic141.text_files import read_json_lines

CODEC_BATCH = 16  # clips per forward pass of the PCA codec
NUM_FUTURES = 8  # valid futures per held-out clip of the shapes world: a single one is mostly chance
NO_TRUTH = "no ground truth: the corpus is not the shapes world"
OWN_CONTINUATION = "real clips are their own continuation"


@dataclass(frozen=True)
class Scorer:
    """Scores sets of clips, row by row.

    Attributes:
        config: which scores are computed.
        codec: on the device that samples.
        generated: artifact of stage `generate`.
        heldout: the held-out clips.
        rows: the conditions' rows in `heldout`.
        truths: their ground truth; None for data without.
        space: space of the Fréchet distance, fitted on training latents.
        real: coefficients [M, n] of what may follow the conditions: several valid futures of each or, if those are not
            known, the held-out clips themselves.
        floor: Fréchet distance of the held-out clips, as of a perfect model; missing if distances are to these clips.
        num_latent_frames: T of a window.
    """

    config: EvaluateConfig
    codec: VideoCodec
    generated: Path
    heldout: ClipDataset
    rows: list[int]
    truths: list[dict[str, Any]] | None
    space: TubeSpace
    real: NDArray[np.float64]
    floor: Score
    num_latent_frames: int

    @classmethod
    def open(cls, config: EvaluateConfig, data: Path, generated: Path) -> Self:
        """Reads conditions and real latents, and fits the space of the Fréchet distance."""
        clips, frames = read_json_lines(generated / "exact" / "conditions.jsonl"), _num_latent_frames(generated)
        info, heldout, train = load_info(data), ClipDataset.open(data, "heldout"), ClipDataset.open(data, "train")
        position = {clip_id: row for row, clip_id in enumerate(heldout.ids)}
        rows = [position[clip["id"]] for clip in clips]
        truths = [clip["truth"] for clip in clips] if info.has_ground_truth else None
        codec = load_codec(data / "codec")
        codec.to(sampling_device())
        space = TubeSpace.fit(train.latents, config.frechet_dimensions, frames)
        real, floor = space.project(heldout.latents[rows, :, :frames]), Score.missing("distances are to these clips")
        if truths is not None:
            num_frames = num_pixel_frames(frames, info.temporal_factor)
            futures = space.project(valid_futures(truths, num_frames, info.height, info.width, codec))
            real, floor = futures, frechet_score(real, futures, rows)
        return cls(config, codec, generated, heldout, rows, truths, space, real, floor, num_latent_frames=frames)

    def heldout_clips(self) -> dict[str, Score]:
        """Scores of the held-out clips themselves: a ceiling."""
        return self._scores("real", self._real_frames, self.floor, Score.missing(OWN_CONTINUATION))

    def reconstruction(self) -> dict[str, Score]:
        """Scores of what the codec makes of the held-out clips: a ceiling of all that is made of its latents."""
        frames = self._decoded()
        encoded = torch.cat([self.codec.encode_video(part).cpu() for part in frames.split(codec_batch(self.codec))])
        return self._scores("codec", lambda: frames, self._distance(encoded), Score.missing(OWN_CONTINUATION))

    def _decoded(self) -> Tensor:
        """The held-out clips as the codec reconstructs them, uint8 [N, F, H, W, 3]."""
        latents = self.heldout.latents[self.rows, :, : self.num_latent_frames]
        return torch.cat([self.codec.decode_video(part).cpu() for part in latents.split(codec_batch(self.codec))])

    def _real_frames(self) -> Tensor:
        """The held-out clips' pixels, uint8 [N, F, H, W, 3]."""
        num_frames = num_pixel_frames(self.num_latent_frames, self.codec.temporal_factor)
        return self.heldout.pixels[self.rows, :num_frames]

    def variant(self, name: str) -> dict[str, Score]:
        """Scores of a generated variant."""
        tensors = load_file(self.generated / "exact" / f"{name}.safetensors")
        return self._scores(
            name, lambda: tensors["frames"], self._distance(tensors["latents"]), self._continuation(name)
        )

    def _distance(self, latents: Tensor) -> Score:
        """The Fréchet distance of clips made from the conditions."""
        videos = self.rows if self.heldout.videos is None else [self.heldout.videos[row] for row in self.rows]
        return frechet_score(self.space.project(latents), self.real, videos)

    def _scores(
        self, name: str, frames: Callable[[], Tensor], distance: Score, continuation: Score
    ) -> dict[str, Score]:
        scores = {**self._exact(frames), FRECHET.key: distance}
        if self.truths is not None:
            scores["continuation_psnr_db"] = continuation
        return scores | score_folder(self.generated / "showcase" / name, self.config.vbench_dimensions)

    def _exact(self, frames: Callable[[], Tensor]) -> dict[str, Score]:
        """Scores against the ground truth; only these need pixels."""
        if self.truths is None:
            return {dimension.key: Score.missing(NO_TRUTH) for dimension in EXACT}
        values = score_clips(frames().numpy(), self.truths)
        scores = {name: Score.mean(array) for name, array in values.items()}
        return {**scores, "speed_std": Score(float(np.std(values["speed"])))}

    def _continuation(self, name: str) -> Score:
        file = self.generated / "exact" / f"continuation-{name}.safetensors"
        if not file.is_file():
            return Score.missing("the window is too short to continue clips from three latent frames")
        tensors = load_file(file)
        return Score.mean(clip_psnr_db(tensors["frames"].numpy(), tensors["truth"].numpy()))


def codec_batch(codec: VideoCodec) -> int:
    """Clips per forward pass of the codec: for a VAE, only one real clip fits into memory."""
    return CODEC_BATCH if isinstance(codec.vae, CausalPCACodec) else 1


def clip_psnr_db(frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """PSNR [N] of each clip, at most 60 dB; frames, truth: uint8 [N, F, H, W, 3]."""
    return psnr_db(((frames.astype(np.float64) - truth) ** 2).mean(axis=(1, 2, 3, 4)) / 255**2)


def valid_futures(
    truths: Sequence[Mapping[str, Any]], num_frames: int, height: int, width: int, codec: VideoCodec
) -> Tensor:
    """Latents [NUM_FUTURES * N, C, T, h, w] of valid futures of the first frames of N shapes clips.

    Every future moves in a direction that the caption allows, at the speed of a randomly chosen clip.
    """
    rng = np.random.default_rng(0)
    clips = [ShapeClip.from_dict(truth) for truth in truths]
    batch, latents = codec_batch(codec), []
    for _ in range(NUM_FUTURES):
        speeds = rng.permutation([clip.speed for clip in clips])
        futures = [other_future(clip, float(speed), rng) for clip, speed in zip(clips, speeds, strict=True)]
        for start in range(0, len(futures), batch):
            part = [render_clip(clip, num_frames, height, width) for clip in futures[start : start + batch]]
            latents.append(codec.encode_video(torch.from_numpy(np.stack(part))).cpu())
    return torch.cat(latents)


def frechet_score(a: NDArray[np.float64], b: NDArray[np.float64], videos: Sequence[Hashable]) -> Score:
    """The distance between coefficients, with its error; missing if there are too few to tell their directions apart.

    Args:
        a: [N*P, n] of N clips with P places each.
        b: [F*N*P, n] of F clips for each of those, all of one round after all of the other.
        videos: what each of the N clips is of.
    """
    num_dimensions = a.shape[1]
    if min(len(a), len(b)) <= num_dimensions:
        return Score.missing(
            f"its {num_dimensions} dimensions (evaluate.frechet_dimensions) need more latent positions of all clips "
            f"than that; there are {len(a)} and {len(b)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Score.missing("latents with values that are not finite")
    return Score(frechet_distance(a, b), stderr=frechet_error(a, b, videos))


def _num_latent_frames(generated: Path) -> int:
    """T of a window: that of the first variant's clips."""
    first = json.loads((generated / "variants.json").read_text())[0]["name"]
    return int(load_file(generated / "exact" / f"{first}.safetensors")["latents"].shape[2])
