"""Attempts at preparing data that work in this process and may be killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magic141.artifacts.fingerprint import CodeStamp
from magic141.data import prepare, ray_launch
from magic141.data.config import DataConfig
from magic141.data.earlier import NOTHING_EARLIER, Earlier
from magic141.data.prepare import prepare_dataset
from magic141.data.sources.chunks import Chunk
from magic141.data.sources.clips import Clip
from magic141.data.sources.listing import VideoFile
from magic141.data.videos.video import write_video
from magic141.data.workers import Encode, Probe, Render
from tests.data.test_prepare import MemoryLog

CODE = CodeStamp(())


class Killed(BaseException):
    """As Ctrl-C."""


class Here:
    """Probes and encodes in this process as Ray's workers do, and is killed after some chunks."""

    def __init__(self) -> None:
        self.chunks_left = 10**9
        self.killer: type[BaseException] = Killed
        self.encoded: list[Clip] = []
        self.captioned: list[Clip] = []
        self.probed: list[str] = []

    def clear(self) -> None:
        """Forgets what was done."""
        for done in (self.encoded, self.captioned, self.probed):
            done.clear()

    def encode(self, chunks: Sequence[Chunk], config: DataConfig, models: Path) -> Iterator[dict[str, Any]]:
        encode = Encode(models, use_gpu=False, code=CODE)
        for chunk in chunks:
            if not self.chunks_left:
                raise self.killer
            self.chunks_left -= 1
            done = self.captioned if chunk.text_only else self.encoded
            done += chunk.clips
            yield encode(Render(config, CODE)(chunk.row))

    def probe(self, folder: Path, videos: Sequence[VideoFile], config: DataConfig) -> Iterator[dict[str, Any]]:
        for video in videos:
            self.probed.append(video.file)
            yield Probe(folder, config, CODE)(video._asdict())


def without_ray(patch: pytest.MonkeyPatch) -> Here:
    """Work in this process, on chunks of three clips, so that shards of four end inside of them."""
    here = Here()
    torch.set_num_threads(1)  # as `Encode` does, after the first attempt has fitted the codec with other kernels
    for module in (prepare, ray_launch):
        patch.setattr(module, "start_ray", lambda config: None)
    patch.setattr(ray_launch, "encoded_chunks", here.encode)
    patch.setattr(prepare, "probe_results", here.probe)
    patch.setattr("magic141.data.sources.clips.MAX_CHUNK_CLIPS", 3)
    return here


def run(config: DataConfig, folder: Path, log: MemoryLog | None = None, earlier: Earlier = NOTHING_EARLIER) -> Path:
    """One attempt, with an empty `out` and the run_dir of those before."""
    out = folder / f"out{len(list(folder.glob('out*')))}"
    out.mkdir(parents=True)
    prepare_dataset(config, out, log or MemoryLog(), 3, folder / "run", earlier)
    return out


def make_folder(folder: Path, num: int) -> DataConfig:
    """Videos of different noise; none is bad."""
    folder.mkdir()
    for number in range(num):
        frames = np.random.default_rng(number).integers(0, 255, (45, 32, 32, 3), np.uint8)
        write_video(folder / f"{number}.mp4", frames, fps=8)
        (folder / f"{number}.txt").write_text("noise")
    return DataConfig.model_validate(
        {
            "source": "folder",
            "path": folder,
            "shard_size": 4,
            "stride_frames": 4,
            "cut_score": None,
            "codec": {"num_channels": 8},
        }
    )
