"""What clips of a prepared corpus were made of: kept beside them, so that the next corpus need not make them again.

The record is no result: it does not count in the artifact's digest, and an artifact without it is as good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from magic141.artifacts.digests import canonical_json, sha256_text
from magic141.artifacts.file_records import FileRecord
from magic141.data.config import DataConfig
from magic141.data.kept import read_record, write_record
from magic141.data.sources.clips import Clip, Probed

ORIGINS_FILE = "origins.json"
KEY_CHARS = 32


class Stamp(NamedTuple):
    """What changes when a file does."""

    size: int
    modified_ns: int


class Origins(NamedTuple):
    """What a corpus was made of.

    Attributes:
        probing: key of how videos were probed (`probing_key`).
        videos: digest of each usable video -> its frames at `data.fps`.
        files: name of each -> its size, time and digest, as they were before it was probed.
        keys: key of each clip (`ClipKeys`), in the order of the manifest.
        pixels: digest of the pixels of each.
    """

    probing: str
    videos: dict[str, int]
    files: dict[str, FileRecord]
    keys: list[str]
    pixels: list[str]


@dataclass(frozen=True)
class ClipKeys:
    """Keys of everything that decides how a clip's pictures are encoded; its caption, split and file name do not.

    Attributes:
        config: of the frames.
        code: digest of the code that prepares.
        models: digest of codec and encoders.
        videos: file -> what was found in it; empty for the shapes world, whose clips say themselves what they show.
    """

    config: DataConfig
    code: str
    models: str
    videos: Mapping[str, Probed]

    def __call__(self, clip: Clip) -> str:
        """The key of a clip."""
        config, video = self.config, self.videos.get(clip.source)
        frames = [config.fps, config.num_frames, config.height, config.width]
        source = video.digest if video else clip.source
        return _key([self.code, self.models, frames, source, clip.start_frame, clip.anchor_frame, clip.truth])


def probing_key(config: DataConfig, code: str) -> str:
    """Key of everything but the video itself that decides how many frames it is found to have."""
    return _key([code, config.fps])


def write_origins(
    folder: Path,
    probing: str,
    videos: Mapping[str, Probed],
    stamps: Mapping[str, Stamp],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the record into an artifact's folder.

    Args:
        folder: of the artifact.
        probing: `probing_key`.
        videos: file -> what probing found in it.
        stamps: file -> its size and time, from before it was probed.
        rows: what is known of the clips, in the order of the manifest.
    """
    lengths = {video.digest: video.num_frames for video in videos.values()}
    files = {file: FileRecord(*stamps[file], video.digest) for file, video in videos.items()}
    origins = Origins(probing, lengths, files, [row["key"] for row in rows], [row["pixels"] for row in rows])
    write_record(folder / ORIGINS_FILE, origins._asdict())


def read_origins(folder: Path) -> Origins | None:
    """The record of a folder; None if there is none, or one of another version."""
    values = read_record(folder / ORIGINS_FILE)
    if not values or values.keys() != set(Origins._fields):
        return None
    return Origins(**values)._replace(files={name: FileRecord(*file) for name, file in values["files"].items()})


def stamp_file(path: Path) -> Stamp:
    """A file's size and time; of one that is gone such as no file has."""
    try:
        stat = path.stat()
    except OSError:
        return Stamp(-1, -1)
    return Stamp(stat.st_size, stat.st_mtime_ns)


def _key(parts: Sequence[Any]) -> str:
    return sha256_text(canonical_json(parts))[:KEY_CHARS]
