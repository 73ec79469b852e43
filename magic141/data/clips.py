"""Lists and renders the clips of the corpus: of the shapes world, or cut from the videos in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from magic141.artifacts import source_files
from magic141.data.config import DataConfig
from magic141.data.shapes import ShapeClip, render_clip, sample_clip
from magic141.data.splits import split_windows
from magic141.data.video import Frames, count_frames, read_video
from magic141.frozen import UserError

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif"})
CAPTIONS_FILE = "captions.jsonl"
MAX_CHUNK_CLIPS = 256
MAX_ANCHOR_FRAMES = 64  # most frames from a shapes clip's anchor to its start, in which the shape may circle twice
MAX_CHUNK_BYTES = 64_000_000  # of pixels that are sent between workers at once


@dataclass(frozen=True)
class Clip:
    """One clip to make: where its pixels come from, its caption, its split.

    `anchor_frame`, relative to `start_frame` and not after it, is the first frame of the video that the clip is taken
    to continue; continued windows know it (see `diffusion.long_video`).
    """

    split: str
    source: str  # "shapes", or the video's path inside the folder
    start_frame: int  # after resampling
    caption: str
    anchor_frame: int = 0
    truth: dict[str, Any] | None = None  # its ShapeClip, as a dictionary

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**values)


class BadFile(NamedTuple):
    """A file that cannot be used, and why."""

    file: str
    reason: str


class VideoFile(NamedTuple):
    """A video and its caption."""

    file: str  # relative to the folder, with forward slashes
    caption: str


class Listing(NamedTuple):
    """Usable and unusable videos."""

    videos: list[VideoFile]
    bad_files: list[BadFile]


class Windows(NamedTuple):
    """Clips cut from videos, and notes for the log."""

    clips: list[Clip]
    notes: list[str]


def sample_shapes(config: DataConfig, seed: int) -> list[Clip]:
    """Draws the shapes corpus; the three splits come from separate random streams."""
    shapes = config.shapes
    sizes = {"train": shapes.num_train, "validation": shapes.num_validation, "heldout": shapes.num_heldout}
    clips = []
    for stream, (split, size) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, stream])
        drawn = [sample_clip(rng, shapes) for _ in range(size)]
        anchors = np.random.default_rng([seed, stream, 1]).integers(-MAX_ANCHOR_FRAMES, 1, size)
        clips += [
            Clip(split, "shapes", 0, clip.caption, int(anchor), clip.to_dict())
            for clip, anchor in zip(drawn, anchors, strict=True)
        ]
    return clips


def list_videos(folder: Path) -> Listing:
    """Finds the videos of a folder and their captions, from captions.jsonl or a .txt beside each video.

    Raises:
        UserError: for a missing folder, one without videos, or a captions.jsonl that cannot be understood.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UserError(f"data.path = {folder}: {what}; expected a folder of videos with {CAPTIONS_FILE}")
    listed = source_files(folder)
    files = [path for path in listed if path.suffix.lower() in VIDEO_SUFFIXES]
    texts = {path.with_suffix(""): path for path in listed if path.suffix.lower() == ".txt"}
    captions = _read_captions(folder)
    if not files and not captions:
        known = " ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"data.path = {folder}: no videos in it; expected files that end in one of {known}")
    videos, bad = [], []
    for path in files:
        name, text = path.relative_to(folder).as_posix(), texts.get(path.with_suffix(""))
        caption = captions[name] if name in captions else _read_utf8(text) if text else None
        if caption is None:
            missing = f"no caption: neither in {CAPTIONS_FILE} nor in {path.stem}.txt"
            bad.append(BadFile(name, f"{text.name} is not UTF-8, the encoding expected" if text else missing))
        elif not caption.strip():
            bad.append(BadFile(name, "empty caption"))
        else:
            videos.append(VideoFile(name, " ".join(caption.split())))
    found = {path.relative_to(folder).as_posix() for path in files}
    lost = sorted(set(captions) - found)
    bad += [BadFile(name, f"named in {CAPTIONS_FILE}, but there is no such video") for name in lost]
    return Listing(videos, bad)


def _read_utf8(path: Path) -> str | None:
    """A file's text, without a byte-order mark; None if it is in another encoding."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text  # UTF-16 without a byte-order mark passes as UTF-8 with zeros in between


def _read_captions(folder: Path) -> dict[str, str]:
    """Reads captions.jsonl as {file inside the folder: caption}; empty if there is no such file."""
    path = folder / CAPTIONS_FILE
    if not path.is_file():
        return {}
    text = _read_utf8(path)
    if text is None:
        raise UserError(f"{path}: not UTF-8, the encoding expected; save it as UTF-8")
    captions: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        named, caption = _parse_caption(f"{path}, line {number}", line)
        file = _inside(folder, Path(named))
        if file in captions:
            raise UserError(f"{path}, line {number}: file {file!r} is named a second time; keep one of the two lines")
        captions[file] = caption
    return captions


def _inside(folder: Path, file: Path) -> str:
    """The name that `list_videos` gives a file; an absolute path may lead through a link."""
    ways = (file, file.resolve()) if file.is_absolute() else ()
    root = folder.resolve()
    return next((way.relative_to(root).as_posix() for way in ways if way.is_relative_to(root)), file.as_posix())


def _parse_caption(where: str, line: str) -> tuple[str, str]:
    expected = 'expected {"file": "a.mp4", "caption": "..."}; correct the line'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: {line[:60]!r} is not JSON ({error.msg}); {expected}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: {line[:60]!r} is not a JSON object; {expected}")
    for field in ("file", "caption"):
        if not isinstance(row.get(field), str):
            raise UserError(f"{where}: field {field!r} is {row.get(field)!r}; {expected}")
    return row["file"], row["caption"]


def probe_video(folder: Path, video: VideoFile, config: DataConfig) -> int | BadFile:
    """Decodes a video once; returns its number of frames at `config.fps`, or why it cannot be used."""
    try:
        num_frames = count_frames(folder / video.file, config.fps)
    except UserError as error:
        return BadFile(video.file, str(error).split(": ", 1)[-1].split(";")[0])
    if num_frames < config.num_frames:
        return BadFile(
            video.file, f"too short: {num_frames} frames at {config.fps:g} fps, data.num_frames = {config.num_frames}"
        )
    return num_frames


def cut_windows(videos: Sequence[VideoFile], num_frames: Sequence[int], config: DataConfig) -> Windows:
    """Cuts videos of `num_frames` frames into windows and assigns these to splits."""
    counts = [(frames - config.num_frames) // config.stride_frames + 1 for frames in num_frames]
    gap = -(-config.num_frames // config.stride_frames) - 1  # windows that overlap the next split's first
    split = split_windows(counts, config.heldout_fraction, gap, config.max_heldout_clips)
    clips = [
        Clip(label, video.file, index * config.stride_frames, video.caption, -index * config.stride_frames)
        for video, labels in zip(videos, split.labels, strict=True)
        for index, label in enumerate(labels)
        if label is not None
    ]
    return Windows(clips, split.notes)


def make_chunks(clips: Sequence[Clip], config: DataConfig) -> list[list[Clip]]:
    """Groups clips of one source and split into units of work of bounded size, in order."""
    clip_bytes = config.num_frames * config.height * config.width * 3
    size = max(1, min(MAX_CHUNK_CLIPS, MAX_CHUNK_BYTES // clip_bytes))
    groups = (list(group) for _, group in groupby(clips, key=lambda clip: (clip.source, clip.split)))
    return [chunk for group in groups for chunk in _slices(group, size)]


def _slices(group: Sequence[Clip], size: int) -> Iterator[list[Clip]]:
    return (list(group[start : start + size]) for start in range(0, len(group), size))


def render_chunk(chunk: Sequence[Clip], config: DataConfig) -> Frames:
    """The pixels of a chunk, uint8 [N, F, H, W, 3]."""
    length, height, width = config.num_frames, config.height, config.width
    if config.path is None or chunk[0].truth is not None:
        truths: Iterator[Mapping[str, Any]] = (clip.truth or {} for clip in chunk)
        return np.stack([render_clip(ShapeClip.from_dict(dict(truth)), length, height, width) for truth in truths])
    first = chunk[0].start_frame
    path = config.path / chunk[0].source
    frames = read_video(path, config.fps, (height, width), first, chunk[-1].start_frame - first + length)
    windows = [frames[clip.start_frame - first : clip.start_frame - first + length] for clip in chunk]
    if len(windows[-1]) < length:
        raise UserError(
            f"video {path}: ended early at frame {first + len(frames)}; it changed while it was read; try again"
        )
    return np.stack(windows)


def render_anchors(chunk: Sequence[Clip], config: DataConfig) -> Frames:
    """The anchor frames of a chunk, uint8 [N, H, W, 3]."""
    height, width = config.height, config.width
    if config.path is None or chunk[0].truth is not None:
        shapes = ((ShapeClip.from_dict(dict(clip.truth or {})), clip.anchor_frame) for clip in chunk)
        return np.concatenate([render_clip(shape, 1, height, width, first) for shape, first in shapes])
    first = read_video(config.path / chunk[0].source, config.fps, (height, width), 0, 1)
    return np.repeat(first, len(chunk), axis=0)
