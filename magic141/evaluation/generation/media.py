"""Writes generated frames as pictures and videos for viewing, small ones enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from magic141.data.videos.pixels import Frames
from magic141.data.videos.video import write_video

MIN_SIDE = 128  # small videos are enlarged by whole factors until their shorter side has this many pixels


def zoom_for(frames: Frames) -> int:
    """The whole factor by which frames [..., H, W, 3] are enlarged in files."""
    height, width = frames.shape[-3:-1]
    return max(1, MIN_SIDE // min(int(height), int(width)))


def save_video(path: Path, frames: Frames, fps: float) -> None:
    """Writes uint8 [F, H, W, 3] as mp4, small ones enlarged."""
    write_video(path, frames, fps, zoom_for(frames))


def save_image(path: Path, image: Frames) -> None:
    """Writes uint8 [H, W, 3] as PNG, small ones enlarged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_enlarge(image, zoom_for(image))).save(path)


def save_rows(path: Path, image: Frames) -> None:
    """Writes some rows of a picture, uint8 [H, W, 3], as they are, for `save_image` once all rows are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def read_image(path: Path) -> Frames:
    """A picture from a file, uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image)


def _enlarge(frames: Frames, zoom: int) -> Frames:
    return np.asarray(np.repeat(np.repeat(frames, zoom, axis=-3), zoom, axis=-2))
