"""Pictures and videos of generated frames for people."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from magic141.data.video import write_video

Frames = NDArray[np.uint8]

MIN_SIDE = 128  # small videos are enlarged by whole factors until their shorter side has this many pixels
GAP = 2
MAX_COLUMNS = 9
MIME = {".mp4": "video/mp4", ".png": "image/png"}


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


def media_uri(file: Path) -> str:
    """A video or picture as a data URI, for pages that are one file."""
    return f"data:{MIME[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def contact_sheet(clips: Frames, max_columns: int = MAX_COLUMNS) -> Frames:
    """One row per clip, evenly spaced frames as columns: uint8 [N, F, H, W, 3] to one image [H', W', 3]."""
    num_frames = clips.shape[1]
    picked = np.linspace(0, num_frames - 1, min(max_columns, num_frames)).round().astype(int)
    zoom = max(1, zoom_for(clips) // 2)
    shown = _enlarge(clips[:, picked], zoom)
    framed = np.pad(shown, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
    rows, columns, height, width, channels = framed.shape
    return np.ascontiguousarray(framed.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels))


def _enlarge(frames: Frames, zoom: int) -> Frames:
    return np.asarray(np.repeat(np.repeat(frames, zoom, axis=-3), zoom, axis=-2))
