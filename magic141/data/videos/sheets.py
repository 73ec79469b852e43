"""Contact sheets: clips as rows of frames in one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magic141.data.videos.pixels import Frames

MAX_COLUMNS = 9
MIN_FRAME_WIDTH = 64
GAP = 4
TEXT_SHARE, MIN_TEXT = 0.15, 13  # of a row's height, and in pixels


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


def with_row_names(sheet: Frames, num_rows: int, names: Sequence[str]) -> Frames:
    """A contact sheet, uint8 [H, W, 3], with a name to the left of every row; the names take turns."""
    height = len(sheet) // num_rows
    size = max(MIN_TEXT, round(TEXT_SHARE * height))
    font = ImageFont.load_default(size)
    width = size // 2 + max(round(font.getlength(name)) for name in names)
    margin = Image.new("RGB", (width, len(sheet)), "white")
    draw = ImageDraw.Draw(margin)
    for row in range(num_rows):
        draw.text((size // 4, (row + 0.5) * height), names[row % len(names)], "black", font, anchor="lm")
    return np.concatenate([np.asarray(margin), sheet], axis=1)
