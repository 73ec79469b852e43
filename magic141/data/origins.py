"""What clips of a prepared corpus were made of: kept beside them, so that the next corpus need not make them again.

The record is no result: it does not count in the artifact's digest, and an artifact without it is as good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from magic141.artifacts.digests import canonical_json, sha256_text
from magic141.data.config import DataConfig
from magic141.data.info import ORIGINS_FILE
from magic141.data.kept import read_record, write_record
from magic141.data.sources.clips import Clip, Probed
from magic141.data.sources.listing import stamp_file

KEY_CHARS = 32
CHANGED = ""  # the key of a clip whose video is no longer the one that was probed: nobody looks for it


class ClipOrigin(NamedTuple):
    """A clip's key (`ClipKeys`), and the digest of its pixels."""

    key: str
    pixels: str


class Origins(NamedTuple):
    """What a corpus was made of.

    Attributes:
        probing: key of how videos were probed (`probing_key`).
        folder: of the videos.
        videos: by their names.
        clips: by their ids in the manifest.
    """

    probing: str
    folder: str
    videos: dict[str, Probed]
    clips: dict[str, ClipOrigin]


ORIGINS = TypeAdapter(Origins)


@dataclass(frozen=True)
class ClipKeys:
    """Keys of everything that decides how a clip's pictures are encoded; its caption, split and file name do not.

    Attributes:
        config: of the frames. GPUs encode in half precision.
        code: digest of the code that prepares.
        models: digest of codec and encoders.
        videos: by their names; none in the shapes world, whose clips say themselves what they show.
    """

    config: DataConfig
    code: str
    models: str
    videos: Mapping[str, Probed]

    def __call__(self, clip: Clip) -> str:
        """The key of a clip."""
        config, video = self.config, self.videos.get(clip.source)
        frames = [config.fps, config.num_frames, *clip.size(config), config.num_gpus_per_worker > 0]
        source = video.digest if video else clip.source
        return _key([self.code, self.models, frames, source, clip.start_frame, clip.anchor_frame, clip.truth])

    def hold_for(self, source: str) -> bool:
        """Whether a clip's source still is what it was when it was probed."""
        return source not in self.videos or is_unchanged(self.config, source, self.videos[source])


def probing_key(config: DataConfig, code: str) -> str:
    """Key of everything but the video itself that decides how many frames and scenes it is found to have."""
    return _key([code, config.fps, config.cut_score])


def write_origins(folder: Path, key_of: ClipKeys, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the record into an artifact's folder; `rows`: what is known of its clips."""
    config = key_of.config
    origins = Origins(
        probing_key(config, key_of.code),
        str(config.folder),
        {file: video for file, video in key_of.videos.items() if is_unchanged(config, file, video)},
        {row["id"]: ClipOrigin(row["key"], row["pixels"]) for row in rows},
    )
    write_record(folder / ORIGINS_FILE, origins._asdict())


def read_origins(folder: Path) -> Origins | None:
    """The record of a folder; None if there is none, or one of another version."""
    try:
        return ORIGINS.validate_python(read_record(folder / ORIGINS_FILE))
    except ValueError:
        return None


def is_unchanged(config: DataConfig, file: str, video: Probed) -> bool:
    """Whether a file of the corpus is as it was when it was probed."""
    return config.folder is not None and stamp_file(config.folder / file) == video.stamp


def _key(parts: Sequence[Any]) -> str:
    return sha256_text(canonical_json(parts))[:KEY_CHARS]
