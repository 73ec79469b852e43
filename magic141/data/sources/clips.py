"""Lists and renders the clips of the corpus: of the shapes world, or cut from the videos in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from magic141.data.config import DataConfig
from magic141.data.shapes import ShapeClip, render_clip, sample_clip
from magic141.data.sizes import Size
from magic141.data.sources.listing import BadFile, Stamp, VideoFile
from magic141.data.sources.scenes import longest_scene, note_cuts, place_windows
from magic141.data.sources.splits import HeldOut, split_windows
from magic141.data.sources.video_groups import group_videos, note_copies
from magic141.data.videos.decoding import BadVideo
from magic141.data.videos.pixels import Frames
from magic141.data.videos.video import Measured, measure_video, read_frames

MAX_REPEATS = 2  # of a frame: drawings often move at 12 fps and are shown at 24; what moves more slowly seems to stop
MAX_CHUNK_CLIPS = 256
MAX_ANCHOR_FRAMES = 64  # most frames from a shapes clip's anchor to its start, in which the shape may circle twice
MAX_CHUNK_BYTES = 64_000_000  # of pixels that are sent between workers at once


@dataclass(frozen=True)
class Clip:
    """One clip to make: where its pixels come from, its caption, its split.

    `anchor_frame`, relative to `start_frame` and not after it, is the first frame of the scene that the clip continues;
    continued windows know it (see `diffusion.long_video`). `more_size`, one of `data.more_sizes`, is that of its
    pixels; None: height x width.
    """

    split: str
    source: str  # "shapes", or the video's path inside the folder
    start_frame: int  # after resampling
    caption: str
    anchor_frame: int = 0
    truth: dict[str, Any] | None = None  # its ShapeClip, as a dictionary
    more_size: Size | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`, also after a way through JSON."""
        size = values["more_size"]
        return cls(**{**values, "more_size": size and Size(*size)})

    def size(self, config: DataConfig) -> Size:
        """Height and width of its pixels."""
        return self.more_size or config.size


class Probed(NamedTuple):
    """What is known of a usable video.

    Attributes:
        num_frames: at `config.fps`.
        digest: of the file.
        stamp: of the file, from before it was read.
        aspect: width / height as shown.
        cuts: frames that begin a new scene.
    """

    num_frames: int
    digest: str
    stamp: Stamp
    aspect: float
    cuts: tuple[int, ...] = ()


class Windows(NamedTuple):
    """Clips of videos, by which rule some are held out, and notes for the log."""

    clips: list[Clip]
    heldout: HeldOut
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


def probe_video(folder: Path, video: VideoFile, config: DataConfig) -> Measured | BadFile:
    """Decodes a video once: what it has at `config.fps`, or why it cannot be used.

    Raises:
        StorageError: it cannot be read, here and now.
    """
    try:
        measured = measure_video(folder / video.file, config.fps, config.cut_score)
    except BadVideo as error:
        return BadFile(video.file, error.reason)
    num_frames, num_distinct, _, cuts = measured
    rate = f"at data.fps = {config.fps:g}"
    if longest_scene(num_frames, cuts) < config.num_frames:
        return BadFile(
            video.file, f"too short: {_length(measured, rate, config)}, data.num_frames = {config.num_frames}"
        )
    if num_frames > MAX_REPEATS * (num_distinct + 1):
        repeats = f"each of its {num_distinct} frames would be shown {num_frames / num_distinct:.1f} times {rate}"
        return BadFile(video.file, f"too slow: {repeats}, expected at most {MAX_REPEATS}; lower data.fps")
    return measured


def _length(measured: Measured, rate: str, config: DataConfig) -> str:
    """Why a video is too short, in words."""
    num_frames, _, _, cuts = measured
    if num_frames < config.num_frames:
        return f"{num_frames} frames {rate}"
    longest = longest_scene(num_frames, cuts)
    return f"{len(cuts)} cuts (data.cut_score = {config.cut_score:g}) leave scenes of at most {longest} frames {rate}"


def cut_windows(videos: Sequence[VideoFile], probed: Sequence[Probed], config: DataConfig) -> Windows:
    """Cuts videos into windows and assigns these to splits."""
    places = [place_windows(found.num_frames, found.cuts, config) for found in probed]
    counts = list(map(len, places))
    gap = -(-config.num_frames // config.stride_frames) - 1  # windows that overlap the next split's first
    files, digests = [video.file for video in videos], [found.digest for found in probed]
    groups = group_videos(files, digests, counts, by_folder=config.held_out_by == "folder")
    notes = [*note_cuts([found.cuts for found in probed], config), *note_copies(files, groups)]
    split = split_windows(groups, config.heldout_fraction, gap, config.max_heldout_clips)
    clips = [
        Clip(
            label,
            video.file,
            place.start,
            video.caption,
            place.scene_start - place.start,
            more_size=config.more_size_for(found.aspect) if label == "train" else None,
        )
        for video, found, windows, labels in zip(videos, probed, places, split.labels, strict=True)
        for place, label in zip(windows, labels, strict=True)
        if label is not None
    ]
    return Windows(clips, split.heldout, [*notes, *split.notes])


def make_chunks(clips: Sequence[Clip], config: DataConfig) -> list[list[Clip]]:
    """Groups clips of one source, split and size into units of work of bounded size, in order."""
    groups = (list(group) for _, group in groupby(clips, key=lambda clip: (clip.source, clip.split, clip.more_size)))
    return [chunk for group in groups for chunk in _slices(group, config)]


def _slices(group: Sequence[Clip], config: DataConfig) -> Iterator[list[Clip]]:
    num = max(1, min(MAX_CHUNK_CLIPS, MAX_CHUNK_BYTES // config.clip_bytes(group[0].size(config))))
    return (list(group[start : start + num]) for start in range(0, len(group), num))


def render_chunk(chunk: Sequence[Clip], config: DataConfig) -> Frames:
    """The pixels of a chunk, uint8 [N, F, H, W, 3]; of a video only the chunk's frames are kept, however far apart.

    Raises:
        BadVideo: it cannot be decoded.
        StorageError: it cannot be read, here and now.
    """
    length, size = config.num_frames, chunk[0].size(config)
    if config.folder is None:
        return np.stack([render_clip(_shape_of(clip), length, *size) for clip in chunk])
    path = config.folder / chunk[0].source
    windows = [range(clip.start_frame, clip.start_frame + length) for clip in chunk]
    wanted = sorted({frame for window in windows for frame in window})
    frames = read_frames(path, config.fps, size, wanted)
    if len(frames) < len(wanted):
        raise BadVideo(path, f"ended early at frame {wanted[len(frames)]}: it changed while it was read")
    places = {frame: place for place, frame in enumerate(wanted)}
    return np.stack([frames[places[window[0]] : places[window[0]] + length] for window in windows])


def render_anchors(chunk: Sequence[Clip], config: DataConfig) -> Frames:
    """The anchor frames of a chunk, uint8 [N, H, W, 3]."""
    size = chunk[0].size(config)
    if config.folder is None:
        return np.concatenate([render_clip(_shape_of(clip), 1, *size, clip.anchor_frame) for clip in chunk])
    wanted = [clip.start_frame + clip.anchor_frame for clip in chunk]
    frames = read_frames(config.folder / chunk[0].source, config.fps, size, wanted)
    return frames[np.unique(wanted, return_inverse=True)[1]]


def _shape_of(clip: Clip) -> ShapeClip:
    assert clip.truth is not None, "only clips of the shapes world have no video"
    return ShapeClip.from_dict(clip.truth)
