"""From a decoded frame to the picture that a viewer would see: upright, square pixels, the right colours, no alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation

from magic141.data.videos.decoding import BadVideo

Frames = npt.NDArray[np.uint8]
MAX_ASPECT = 4.0  # of the longer to the shorter side; more is no scene, and scaling would take gigabytes
_UNSPECIFIED = 2  # FFmpeg's number of a colour space that the file does not name
_HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of transfer curves


def check_picture(path: Path, frame: VideoFrame, pixel_aspect: float) -> None:
    """Refuses pictures that cannot be shown as they are meant.

    Args:
        path: The file.
        frame: decoded.
        pixel_aspect: width of a pixel divided by its height.

    Raises:
        BadVideo: with the reason.
    """
    curve = _HDR.get(int(frame.color_trc))
    if curve is not None:
        raise BadVideo(path, f"high dynamic range ({curve}), expected a standard one such as BT.709: tone-map it first")
    aspect = frame.width * pixel_aspect / frame.height
    if max(aspect, 1 / aspect) > MAX_ASPECT:
        shown = f"{frame.width * pixel_aspect:.0f}x{frame.height}"
        raise BadVideo(path, f"a picture of {shown} pixels, expected sides of at most {MAX_ASPECT:g}:1")


def shown_aspect(frame: VideoFrame, pixel_aspect: float) -> float:
    """Width / height of the picture as it is shown, upright."""
    aspect = frame.width * pixel_aspect / frame.height
    return 1 / aspect if _quarter_turns(frame) % 2 else aspect


def to_rgb(frame: VideoFrame, size: tuple[int, int] | None, pixel_aspect: float = 1.0) -> Frames:
    """The frame as uint8 [H, W, 3], scaled to cover `size` (height, width) and centre-cropped to it.

    Args:
        frame: decoded.
        size: None keeps the stored size, but for pixels that are not square.
        pixel_aspect: width of a pixel divided by its height.
    """
    is_mirrored = _is_mirrored(frame)
    quarter_turns = _quarter_turns(frame)
    shown = (frame.height, frame.width * pixel_aspect)
    height, width = (frame.height, round(shown[1])) if size is None else size[:: -1 if quarter_turns % 2 else 1]
    scale = max(height / shown[0], width / shown[1]) if size is not None else 1.0
    covering = (max(height, round(shown[0] * scale)), max(width, round(shown[1] * scale)))
    scaled = _scaled(frame, covering, Interpolation.AREA if scale < 1 else Interpolation.BICUBIC)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    cropped = scaled[top : top + height, left : left + width]
    return np.ascontiguousarray(np.rot90(np.fliplr(cropped) if is_mirrored else cropped, quarter_turns))


def _quarter_turns(frame: VideoFrame) -> int:
    return (round(frame.rotation / 90) + 2 * _is_mirrored(frame)) % 4  # mirrored: `rotation` is half a turn off


def _is_mirrored(frame: VideoFrame) -> bool:
    """Whether the display matrix mirrors the picture: its determinant is negative."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, np.int32)[:5])
    return a * d - b * c < 0


def _scaled(frame: VideoFrame, size: tuple[int, int], method: Interpolation) -> Frames:
    """The whole picture as uint8 [H, W, 3] of `size` (height, width)."""
    colours = _colours(frame)
    if frame.interlaced_frame:
        frame = _upper_field(frame)
    if any(component.is_alpha for component in frame.format.components):
        frame, colours = _on_black(frame, colours), {}
    if (frame.height, frame.width) == size:
        rgb = frame.reformat(format="rgb24", threads=1, **colours)
    else:
        height, width = size
        how = {"format": "rgb24", "interpolation": method, "threads": 1, **colours}
        rgb = frame.reformat(width=width, height=height, **how)
    return np.asarray(rgb.to_ndarray(), np.uint8)


def _colours(frame: VideoFrame) -> dict[str, Any]:
    """HD that does not name its colour space is in BT.709; FFmpeg would take it for BT.601, the one of SD."""
    is_hd = frame.height >= 720 or frame.width >= 1280
    unnamed = int(frame.colorspace) == _UNSPECIFIED and not frame.format.is_rgb
    return {"src_colorspace": Colorspace.ITU709} if is_hd and unnamed else {}


def _upper_field(frame: VideoFrame) -> VideoFrame:
    """Every second line: the other lines show another moment, and scaling would mix the two."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    field, sink = graph.add("field", "top"), graph.add("buffersink")
    source.link_to(field)
    field.link_to(sink)
    graph.configure()
    graph.vpush(frame)
    return graph.vpull()


def _on_black(frame: VideoFrame, colours: dict[str, Any]) -> VideoFrame:
    """Where the picture is transparent, its colours mean nothing."""
    rgba = frame.reformat(format="rgba", threads=1, **colours).to_ndarray().astype(np.uint16)
    rgb = (rgba[..., :3] * rgba[..., 3:] + 127) // 255
    return VideoFrame.from_ndarray(np.ascontiguousarray(rgb.astype(np.uint8)), format="rgb24")
