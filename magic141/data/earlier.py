"""What earlier preparations have found out and encoded, so that a corpus that has grown costs what is new in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from magic141.artifacts.digests import digest_file
from magic141.artifacts.file_records import ALWAYS_READ_BYTES, FileRecord
from magic141.artifacts.publication import is_published_whole
from magic141.data.config import DataConfig
from magic141.data.dataset import MANIFEST_FILE
from magic141.data.origins import ORIGINS_FILE, probing_key, read_origins, stamp_file
from magic141.data.shards import is_intact, read_shards
from magic141.data.sources.chunks import Chunk
from magic141.data.sources.clips import Probed
from magic141.data.sources.listing import VideoFile
from magic141.data.workers import PIXELS
from magic141.text_files import each_json_line

NUM_THREADS = 8  # that read videos; hashing releases the interpreter's lock
Place = tuple[str, int, Mapping[str, Any]]  # a clip's shard, its row there, and what is recorded of it


@dataclass(frozen=True)
class Earlier:
    """Earlier preparations of any corpus.

    Attributes:
        folders: artifacts, and run_dirs of preparations that were interrupted.
        code: digest of the code that prepares now; what other code has made does not count.
    """

    folders: tuple[Path, ...] = ()
    code: str = ""


NOTHING_EARLIER = Earlier()


class Encoded(NamedTuple):
    """A clip in a shard: the tensors of the shard, its row in them, its caption, and the digest of its pixels."""

    tensors: Mapping[str, Tensor]
    row: int
    caption: str
    pixels: str


class KnownClips:
    """Clips that were encoded before: of the same pixels, with any caption, by the same models and code.

    Their shards stay open, so that nothing is missed if a folder is removed meanwhile.
    """

    def __init__(self, earlier: Earlier, wanted: Collection[str]) -> None:
        self._clips: dict[str, Encoded] = {}
        for folder in earlier.folders:
            if missing := set(wanted) - self._clips.keys():
                with suppress(OSError, SafetensorError):  # of another user, or removed just now
                    self._clips.update(_find(folder, missing))

    def look_up(self, chunk: Chunk, keys: Sequence[str]) -> list[Encoded] | None:
        """All clips of a chunk, given with their keys, those to be held out with their pixels; None if one lacks."""
        found = [self._clips[key] for key in keys if key in self._clips]
        needed = PIXELS if chunk.place.split == "heldout" else "latents"
        return found if len(found) == len(keys) and all(needed in clip.tensors for clip in found) else None


def stacked(clips: Sequence[Encoded], split: str) -> dict[str, Tensor]:
    """The tensors of some clips, as `Encode` makes them for a split."""
    names = [name for name in clips[0].tensors if name != PIXELS or split == "heldout"]
    return {name: torch.stack([clip.tensors[name][clip.row] for clip in clips]) for name in names}


def known_videos(
    earlier: Earlier, folder: Path, videos: Sequence[VideoFile], config: DataConfig
) -> Iterator[tuple[VideoFile, Probed]]:
    """What earlier preparations found in videos of a folder; none is decoded.

    Of many GiB only files are read whose name, size or time is new, as for a stage's key.
    """
    probing, lengths, files = probing_key(config, earlier.code), dict[str, int](), dict[str, FileRecord]()
    for origins in filter(None, map(read_origins, earlier.folders)):
        if origins.probing == probing:
            lengths.update(origins.videos)
            files.update(origins.files)
    if not lengths:
        return
    paths = [folder / video.file for video in videos]
    if sum(stamp_file(path).size for path in paths) <= ALWAYS_READ_BYTES:
        files.clear()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        digests = pool.map(_digest, paths, [files.get(video.file) for video in videos])
        for video, digest in zip(videos, digests, strict=True):
            if lengths.get(digest, 0) >= config.num_frames:
                yield video, Probed(lengths[digest], digest)


def _digest(video: Path, known: FileRecord | None) -> str:
    """The digest of a file; empty if it cannot be read, which probing it will say."""
    if known and stamp_file(video) == known[:2]:
        return known.sha256
    try:
        return digest_file(video)
    except OSError:
        return ""


def _find(folder: Path, wanted: set[str]) -> Iterator[tuple[str, Encoded]]:
    """Those of the wanted clips that a folder has."""
    places = _published(folder, wanted) if (folder / ORIGINS_FILE).exists() else _unfinished(folder, wanted)
    shards: dict[str, Mapping[str, Tensor]] = {}
    for file, number, row in places:
        if file not in shards:
            shards[file] = load_file(folder / file)  # maps it: nothing is read yet
        yield row["key"], Encoded(shards[file], number, row["caption"], row["pixels"])


def _published(folder: Path, wanted: set[str]) -> Iterator[Place]:
    origins = read_origins(folder)
    if origins is None or wanted.isdisjoint(origins.keys) or not is_published_whole(folder, {ORIGINS_FILE}):
        return
    rows = each_json_line(folder / MANIFEST_FILE)
    for key, pixels, row in zip(origins.keys, origins.pixels, rows, strict=True):
        if key in wanted:
            yield row["shard"], row["row"], {**row, "key": key, "pixels": pixels}


def _unfinished(run_dir: Path, wanted: set[str]) -> Iterator[Place]:
    for shard in filter(None, read_shards(run_dir)):
        found = [(number, row) for number, row in enumerate(shard.good_rows) if row.get("key") in wanted]
        if found and is_intact(run_dir, shard):
            yield from ((shard.file, number, row) for number, row in found)
