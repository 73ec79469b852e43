"""Contact sheets: clips as rows of frames in one image."""

from __future__ import annotations

import numpy as np

from magic141.data.videos.pixels import Frames

MAX_COLUMNS = 9
MIN_FRAME_WIDTH = 64
GAP = 4


def contact_sheet(clips: Frames, max_columns: int = MAX_COLUMNS) -> Frames:
    """Lays out uint8 [N, F, H, W, 3]: clips as rows, evenly spaced frames as columns, small frames enlarged."""
    columns = np.linspace(0, clips.shape[1] - 1, min(max_columns, clips.shape[1])).round().astype(int)
    zoom = -(-MIN_FRAME_WIDTH // clips.shape[3])
    frames = clips[:, columns].repeat(zoom, axis=2).repeat(zoom, axis=3)
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    rows, count, height, width, _ = padded.shape
    return padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, count * width, 3)


def comparison_sheet(first: Frames, second: Frames) -> Frames:
    """Lays out two sets of the same clips, each clip of `first` above its counterpart."""
    return contact_sheet(np.stack([first, second], axis=1).reshape(-1, *first.shape[1:]))
