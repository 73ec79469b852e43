"""What earlier preparations have found out and encoded, so that a corpus that has grown costs what is new in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from magic141.artifacts.digests import digest_file
from magic141.artifacts.file_records import ALWAYS_READ_BYTES
from magic141.artifacts.publication import is_published_whole
from magic141.data.config import DataConfig
from magic141.data.dataset import MANIFEST_FILE
from magic141.data.info import ORIGINS_FILE
from magic141.data.kept import ProbeRecords
from magic141.data.origins import Origins, probing_key, read_origins
from magic141.data.shards import is_intact, read_shards
from magic141.data.sources.chunks import Chunk
from magic141.data.sources.clips import Clip, Probed
from magic141.data.sources.listing import Stamp, VideoFile, stamp_file
from magic141.data.sources.scenes import longest_scene
from magic141.data.workers import PIXELS
from magic141.text_files import each_json_line

NUM_THREADS = 8  # that read files; hashing releases the interpreter's lock
Place = tuple[str, int, Mapping[str, Any]]  # a clip's shard, its row there, and what is recorded of it


@dataclass(frozen=True)
class Earlier:
    """Earlier preparations of any corpus.

    Attributes:
        folders: artifacts, and run_dirs of preparations that were interrupted, newest first.
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

    def serves(self, clip: Clip) -> bool:
        """Whether it has the pixels that a held-out clip needs."""
        return clip.split != "heldout" or PIXELS in self.tensors


class KnownClips:
    """Clips that were encoded before: of the same pixels, with any caption, by the same models and code.

    Their shards stay open, so that nothing is missed if a folder is removed meanwhile.
    """

    def __init__(self, earlier: Earlier, wanted: Sequence[tuple[Clip, str]]) -> None:
        self._clips: dict[tuple[str, str | None], Encoded] = {}  # by key and caption; by None one of any caption
        for folder in earlier.folders:
            missing = {key for clip, key in wanted if not self._has(clip, key)}
            with suppress(OSError, SafetensorError, ValueError):  # of another user, removed just now, or not our work
                for key, encoded in _clips_in(folder, missing):
                    self._add(key, encoded)

    def look_up(self, chunk: Chunk, keys: Sequence[str]) -> list[Encoded] | None:
        """All clips of a chunk, given with their keys, with their own captions if possible; None if one is unknown."""
        found = [self._find(clip, key) for clip, key in zip(chunk.clips, keys, strict=True)]
        known = [encoded for encoded in found if encoded is not None]
        return known if len(known) == len(found) else None

    def _find(self, clip: Clip, key: str) -> Encoded | None:
        options = (self._clips.get((key, clip.caption)), self._clips.get((key, None)))
        return next((encoded for encoded in options if encoded and encoded.serves(clip)), None)

    def _has(self, clip: Clip, key: str) -> bool:
        encoded = self._clips.get((key, clip.caption))
        return encoded is not None and encoded.serves(clip)

    def _add(self, key: str, encoded: Encoded) -> None:
        """Keeps a clip, unless there is one already that serves as many purposes."""
        for caption in (encoded.caption, None):
            known = self._clips.get((key, caption))
            if known is None or PIXELS not in known.tensors:
                self._clips[key, caption] = encoded


def stacked(clips: Sequence[Encoded], split: str) -> dict[str, Tensor]:
    """The tensors of some clips, as `Encode` makes them for a split."""
    names = [name for name in clips[0].tensors if name != PIXELS or split == "heldout"]
    return {name: torch.stack([clip.tensors[name][clip.row] for clip in clips]) for name in names}


def known_videos(
    earlier: Earlier, folder: Path, videos: Sequence[VideoFile], config: DataConfig
) -> Iterator[tuple[VideoFile, Probed]]:
    """What earlier preparations found in videos of a folder; none is decoded.

    Only files of a known size are read, and of many GiB, as for a stage's key, only those whose name or time is new.
    """
    known, named = dict[str, Probed](), dict[str, Probed]()
    for place in reversed(earlier.folders):
        origins = _probed_in(place, probing_key(config, earlier.code))
        known.update((video.digest, video) for video in origins.videos.values())
        named.update(origins.videos if origins.folder == str(folder) else {})
    is_large = sum(max(0, stamp_file(folder / video.file).size) for video in videos) > ALWAYS_READ_BYTES
    sizes = {video.stamp.size for video in known.values()}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        paths, before = [folder / video.file for video in videos], [named.get(video.file) for video in videos]
        digests = pool.map(partial(_digest, sizes, trusting=is_large), paths, before)
        for video, digest in zip(videos, digests, strict=True):
            found = known.get(digest)
            if found and longest_scene(found.num_frames, found.cuts) >= config.num_frames:
                yield video, found


def probe_records(run_dir: Path, probing: str) -> ProbeRecords:
    """What a preparation has probed, in one way."""
    return ProbeRecords(run_dir / "probe" / probing)


def as_probed(values: Sequence[Any]) -> Probed:
    """A usable video from its JSON."""
    num_frames, digest, stamp, aspect, cuts = values
    return Probed(num_frames, digest, Stamp(*stamp), aspect, tuple(cuts))


def _probed_in(folder: Path, probing: str) -> Origins:
    """The videos that an earlier preparation probed in the same way; the folder of an interrupted one is not known."""
    nothing = Origins(probing, "", {}, {})
    if (folder / ORIGINS_FILE).exists():
        origins = read_origins(folder)
        return origins if origins and origins.probing == probing else nothing
    found = probe_records(folder, probing).found.items()
    return nothing._replace(videos={file: as_probed(one) for file, one in found if not isinstance(one, str)})


def _digest(sizes: set[int], path: Path, before: Probed | None, trusting: bool) -> str:
    """The digest of a file; empty if no known video has its size, or it cannot be read, which probing it will say."""
    stamp = stamp_file(path)
    if trusting and before and before.stamp == stamp:
        return before.digest
    with suppress(OSError):
        return digest_file(path) if stamp.size in sizes else ""
    return ""


def _clips_in(folder: Path, wanted: Set[str]) -> Iterator[tuple[str, Encoded]]:
    """Those of the wanted clips that a folder has."""
    places = _published(folder, wanted) if (folder / ORIGINS_FILE).exists() else _unfinished(folder, wanted)
    shards: dict[str, Mapping[str, Tensor]] = {}
    for file, number, row in places:
        if file not in shards:
            shards[file] = load_file(folder / file)  # maps it: nothing is read yet
        yield row["key"], Encoded(shards[file], number, row["caption"], row["pixels"])


def _published(folder: Path, wanted: Set[str]) -> Iterator[Place]:
    origins = read_origins(folder)
    found = {name: clip for name, clip in origins.clips.items() if clip.key in wanted} if origins else {}
    if not found or not is_published_whole(folder, {ORIGINS_FILE}):
        return
    for row in each_json_line(folder / MANIFEST_FILE):
        if clip := found.get(row["id"]):
            yield row["shard"], row["row"], {**row, **clip._asdict()}


def _unfinished(run_dir: Path, wanted: Set[str]) -> Iterator[Place]:
    shards = [shard for shard in read_shards(run_dir) if shard]
    found = [shard for shard in shards if any(row.get("key") in wanted for row in shard.good_rows)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        intact = pool.map(partial(is_intact, run_dir), found)
    for shard in compress(found, intact):
        rows = enumerate(shard.good_rows)
        yield from ((shard.file, number, row) for number, row in rows if row.get("key") in wanted)
