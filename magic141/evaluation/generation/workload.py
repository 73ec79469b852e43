"""The inputs of every variant: held-out clips, prompts with their retrieved images, clips for long videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from magic141.data.dataset import ClipDataset, load_null_text
from magic141.data.info import DatasetInfo, load_info
from magic141.data.videos.video import fit_image
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation.media import save_image, save_video
from magic141.evaluation.generation.suite import (
    Conditions,
    pick_clips,
    pick_prompts,
    prompt_conditions,
    shows_own_video,
)
from magic141.models.config import TransformerConfig
from magic141.models.device import sampling_device
from magic141.models.encoders import Encoders
from magic141.models.frames import num_latent_frames, num_pixel_frames
from magic141.models.text_embedding import TextEmbedding
from magic141.models.vae import VideoCodec, load_codec
from magic141.retrieval.prior import Hit, ImagePrior
from magic141.stage_log import StageLog
from magic141.text_files import json_lines

NUM_HITS = 5
NUM_KNOWN = 3  # latent frames that determine a continuation: the first, then two that show position and velocity
Advance = Callable[[int], None]
"""Called with the number of network evaluations, counted per clip, that have just been made."""


@dataclass(frozen=True)
class Workload:
    """The inputs that all variants share; every process opens clips and codec itself."""

    config: GenerateConfig
    info: DatasetInfo
    data: Path
    rows: list[int]  # held-out clips of the exact part
    latent_frames: int  # T of a window
    prompts: list[str]
    hits: list[list[Hit]]
    suite: Conditions
    long_rows: list[int]
    seed: int
    num_gpus: float | None = None  # that this process was given, if it is a Ray worker

    @cached_property
    def device(self) -> torch.device:
        """The device on which this process samples."""
        return sampling_device(self.num_gpus)

    @property
    def batches_at_once(self) -> int:
        """On a CPU every thread samples a batch of its own: small networks cannot keep several threads busy on one.

        Workers go by what they get, not by this process's device: that of a cluster's driver may be another.
        """
        on_gpu = self.device.type == "cuda" if self.num_gpus is None else self.num_gpus > 0
        return 1 if on_gpu else self.config.num_threads

    @cached_property
    def heldout(self) -> ClipDataset:
        """The held-out clips."""
        return ClipDataset.open(self.data, "heldout")

    @cached_property
    def codec(self) -> VideoCodec:
        """The codec, on the device."""
        codec = load_codec(self.data / "codec")
        codec.to(self.device)
        return codec

    @cached_property
    def null_text(self) -> TextEmbedding:
        """The empty prompt, on the device."""
        return load_null_text(self.data).to(self.device)

    def for_workers(self) -> Self:
        """A copy with nothing opened, to be sent to Ray's workers."""
        return replace(self, num_gpus=self.config.gpus_per_worker)

    @property
    def continued_rows(self) -> list[int]:
        """Held-out clips whose first NUM_KNOWN latent frames determine the rest of their window."""
        determined = self.info.has_ground_truth and self.latent_frames > NUM_KNOWN
        return self.rows[: self.config.num_continuation_clips] if determined else []

    def rows_of(self, rows: Sequence[int], batches: range) -> list[int]:
        """The rows that some of their batches hold."""
        size = self.config.batch_size
        return list(rows[batches.start * size : batches.stop * size])

    def decoded(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Decodes [N, C, T, h, w] to N clips uint8 [F, H, W, 3] on the CPU; one batch is in memory at a time."""
        for batch in latents.split(self.config.batch_size):
            yield from self.codec.decode_video(batch).cpu()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes [N, C, T, h, w] to uint8 [N, F, H, W, 3] on the CPU, in no more memory than that; nothing to [0]."""
        if not len(latents):
            return torch.empty(0, dtype=torch.uint8)
        clips = self.decoded(latents)
        first = next(clips)
        frames = first.new_empty(len(latents), *first.shape)
        for place, clip in zip(frames, chain([first], clips), strict=True):
            place.copy_(clip)
        return frames


def prepare_workload(
    config: GenerateConfig,
    model: TransformerConfig,
    data: Path,
    clip: Path,
    index: Path,
    log: StageLog,
    seed: int,
) -> Workload:
    """Chooses clips and prompts, retrieves the prompts' images and encodes both."""
    info, heldout = load_info(data), ClipDataset.open(data, "heldout")
    latent_frames = num_latent_frames(model.window_frames, info.temporal_factor)
    device = sampling_device()
    codec, encoders = load_codec(data / "codec"), Encoders.load(data / "encoders", device)
    codec.to(device)
    prompts = pick_prompts(config.prompts, heldout, config.num_prompts)
    prior = ImagePrior.open(index, clip, data)
    hits = [prior.retrieve(prompt, NUM_HITS) for prompt in prompts]
    for remark in _remarks(prompts, hits, heldout, encoders):
        log.note(remark)
    images = torch.from_numpy(np.stack([fit_image(found[0].image, info.height, info.width) for found in hits]))
    rows = pick_clips(heldout, config.num_exact_clips)
    return Workload(
        config=config,
        info=info,
        data=data.resolve(),
        rows=rows,
        latent_frames=latent_frames,
        prompts=prompts,
        hits=hits,
        suite=prompt_conditions(prompts, images, encoders, codec).to(torch.device("cpu")),
        long_rows=rows[: config.long_video_clips],
        seed=seed,
    )


def _remarks(
    prompts: Sequence[str], hits: Sequence[Sequence[Hit]], heldout: ClipDataset, encoders: Encoders
) -> Iterator[str]:
    """What the encoders do not understand of the prompts, and retrieved images that are no test of retrieval."""
    yield from (f"prompt {prompt!r}: {remark}" for prompt in prompts for remark in encoders.remarks(prompt))
    if own := sum(shows_own_video(prompt, found[0], heldout) for prompt, found in zip(prompts, hits, strict=True)):
        yield (
            f"the image retrieved for {own} of {len(prompts)} prompts is of the very video that the prompt describes, "
            "from its training part: no test of retrieval"
        )


def write_conditions(work: Workload, out: Path) -> None:
    """Writes the conditions of every part, the showcase's inputs, and the codec's reconstruction of the real clips."""
    for folder in ("exact", "suite", "showcase", "long"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    heldout = work.heldout
    clips = [{"id": heldout.ids[r], "caption": heldout.captions[r], "truth": heldout.truths[r]} for r in work.rows]
    (out / "exact" / "conditions.jsonl").write_text(json_lines(clips))
    num_frames = num_pixel_frames(work.latent_frames, work.info.temporal_factor)
    for number, row in enumerate(work.rows[: work.config.num_showcase_clips]):
        save_image(out / "showcase" / "input" / f"{number:02d}.png", heldout.first_frame[row].numpy())
        clip = heldout.pixels[row, :num_frames].numpy()
        save_video(out / "showcase" / "real" / f"{number:02d}.mp4", clip, work.info.fps)
        decoded = work.codec.decode_video(heldout.latents[[row], :, : work.latent_frames])[0].cpu().numpy()
        save_video(out / "showcase" / "codec" / f"{number:02d}.mp4", decoded, work.info.fps)
    _write_prompts(work, out)


def _write_prompts(work: Workload, out: Path) -> None:
    """Writes the prompts with the images found for them."""
    prompts = []
    for number, (prompt, hits) in enumerate(zip(work.prompts, work.hits, strict=True)):
        for rank, hit in enumerate(hits):
            save_image(out / "suite" / "images" / f"{number:02d}-{rank}.png", hit.image)
        found = [_describe_hit(prompt, hit, work.heldout) for hit in hits]
        prompts.append({"prompt": prompt, "clip": hits[0].clip_id, "score": hits[0].score, "hits": found})
    (out / "suite" / "prompts.jsonl").write_text(json_lines(prompts))


def _describe_hit(prompt: str, hit: Hit, heldout: ClipDataset) -> dict[str, Any]:
    own = {"own_video": True} if shows_own_video(prompt, hit, heldout) else {}
    return {"clip": hit.clip_id, "caption": hit.caption, "score": hit.score, **own}
