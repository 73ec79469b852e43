"""The demo's world: one captioned shape moves over a plain background on a torus, with exact ground truth.

The future of a first frame is left partly open on purpose: many captions name only the axis of motion (by default
half), and none names the speed. With a fully determined future, few-step sampling would need no distillation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from magic141.data.config import ShapesConfig

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.85, 0.2),
    "blue": (0.2, 0.35, 1.0),
    "yellow": (0.95, 0.9, 0.15),
    "magenta": (0.9, 0.2, 0.9),
    "cyan": (0.15, 0.9, 0.9),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
AXES = ("horizontally", "along the rising diagonal", "vertically", "along the falling diagonal")
REFERENCE_SIZE = 32  # radii and speeds are pixels at this frame size
EDGE_SLOPE = 1.3  # of the sigmoid across an edge, per pixel; soft edges keep the world easy to model
MAX_BACKGROUND = 0.38
SPEEDS = (0.8, 1.8)  # slowest and fastest, never in the caption


@dataclass(frozen=True)
class ShapeClip:
    """Everything that determines a clip. Positions, radius and speed are in pixels of a 32-pixel frame."""

    shape: str
    colour: str
    radius: float
    x: float
    y: float
    direction: int  # index into DIRECTIONS, 45 degrees each, counter-clockwise
    speed: float  # pixels per frame
    exact: bool  # whether the caption names the direction or only its axis
    corners: tuple[tuple[float, float, float], ...]  # colours: top left, top right, bottom left, bottom right

    @property
    def caption(self) -> str:
        """`a red circle moves up left` (exact) or `a red circle moves along the falling diagonal` (axis)."""
        motion = DIRECTIONS[self.direction] if self.exact else AXES[self.direction % 4]
        return f"a {self.colour} {self.shape} moves {motion}"

    @property
    def allowed_directions(self) -> tuple[int, ...]:
        """Indices of the directions that the caption allows: one, or the two senses of an axis."""
        return (self.direction,) if self.exact else (self.direction % 4, self.direction % 4 + 4)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`, also after a JSON round trip."""
        return cls(**{**values, "corners": tuple(tuple(corner) for corner in values["corners"])})


def sample_clip(rng: np.random.Generator, config: ShapesConfig) -> ShapeClip:
    """Draws one clip; its background is plain (40 %) or a bilinear gradient of four dim colours."""
    plain = rng.random() < 0.4
    colours = rng.uniform(0, MAX_BACKGROUND, (1 if plain else 4, 3))
    corners = np.broadcast_to(colours, (4, 3)).tolist()
    return ShapeClip(
        shape=str(rng.choice(SHAPES)),
        colour=str(rng.choice(list(COLOURS))),
        radius=float(rng.uniform(5.4, 6.2)),
        x=float(rng.uniform(0, REFERENCE_SIZE)),
        y=float(rng.uniform(0, REFERENCE_SIZE)),
        direction=int(rng.integers(len(DIRECTIONS))),
        speed=float(rng.uniform(*SPEEDS)),
        exact=bool(rng.random() < config.exact_fraction),
        corners=tuple((red, green, blue) for red, green, blue in corners),
    )


def other_future(clip: ShapeClip, speed: float, rng: np.random.Generator) -> ShapeClip:
    """A clip with the same first frame and caption, in a direction that the caption allows and at another speed."""
    return replace(clip, direction=int(rng.choice(clip.allowed_directions)), speed=speed)


def direction_vectors() -> NDArray[np.float64]:
    """Unit vectors (x to the right, y down) of the eight directions, shape [8, 2]."""
    angles = np.arange(len(DIRECTIONS)) * np.pi / 4
    return np.stack([np.cos(angles), -np.sin(angles)], axis=1)


def background(clip: ShapeClip, height: int, width: int) -> NDArray[np.float32]:
    """The static background, floats in [0, 1], shape [H, W, 3]."""
    top_left, top_right, bottom_left, bottom_right = np.asarray(clip.corners, np.float32)
    v = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    u = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    top = top_left * (1 - u) + top_right * u
    bottom = bottom_left * (1 - u) + bottom_right * u
    return np.asarray(top * (1 - v) + bottom * v, np.float32)


def signed_distance(
    shape: str, dx: NDArray[np.floating[Any]], dy: NDArray[np.floating[Any]], radius: float
) -> NDArray[np.float32]:
    """Distance to the edge, positive inside; the three shapes have about the same area."""
    if shape == "circle":
        return np.asarray(radius - np.hypot(dx, dy), np.float32)
    if shape == "square":
        return np.asarray(0.886 * radius - np.maximum(np.abs(dx), np.abs(dy)), np.float32)
    inner = 0.72 * radius  # inscribed circle of the equilateral triangle, apex up
    slant = 0.8660254 * np.abs(dx) - 0.5 * dy
    return np.asarray(inner - np.maximum(slant, dy), np.float32)


def coverage(
    shape: str, radius: float, centres: NDArray[np.floating[Any]], height: int, width: int
) -> NDArray[np.float32]:
    """Soft mask of the object on the torus, in [0, 1].

    Args:
        shape: one of `SHAPES`.
        radius: in pixels of this frame size.
        centres: (x, y) in pixels of this frame size, [F, 2].
        height: H, in pixels.
        width: W, in pixels.

    Returns:
        The mask [F, H, W].
    """
    centres = np.asarray(centres, np.float32)
    x = np.arange(width, dtype=np.float32) + 0.5
    y = np.arange(height, dtype=np.float32) + 0.5
    dx = (x[None] - centres[:, :1] + width / 2) % width - width / 2
    dy = (y[None] - centres[:, 1:] + height / 2) % height - height / 2
    distance = signed_distance(shape, dx[:, None, :], dy[:, :, None], radius)
    scale = min(height, width) / REFERENCE_SIZE
    return np.asarray(1 / (1 + np.exp(-EDGE_SLOPE / scale * distance)), np.float32)


def frame_scale(height: int, width: int) -> NDArray[np.float64]:
    """Pixels of a frame per pixel of the reference frame, horizontally and vertically, [2]."""
    return np.asarray(np.array([width, height]) / REFERENCE_SIZE)


def frame_radius(clip: ShapeClip, height: int, width: int) -> float:
    """The object's radius in pixels of a frame."""
    return clip.radius * min(height, width) / REFERENCE_SIZE


def path(clip: ShapeClip, num_frames: int, height: int, width: int, first: int = 0) -> NDArray[np.float64]:
    """Centres (x, y) [F, 2] from frame `first` on, in pixels of this frame size, not wrapped around the torus."""
    times = np.arange(first, first + num_frames)[:, None]
    start = np.array([clip.x, clip.y])
    return np.asarray((start + clip.speed * times * direction_vectors()[clip.direction]) * frame_scale(height, width))


def compose(clip: ShapeClip, mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Puts the coloured object of `mask` [F, H, W] over the background: uint8 [F, H, W, 3]."""
    alpha = mask[..., None]
    colour = np.asarray(COLOURS[clip.colour], np.float32)
    frames = alpha * colour + (1 - alpha) * background(clip, *mask.shape[1:])
    return np.asarray(np.clip(frames * 255 + 0.5, 0, 255), np.uint8)


def render_clip(clip: ShapeClip, num_frames: int, height: int, width: int, first: int = 0) -> NDArray[np.uint8]:
    """The clip's frames, uint8 [F, H, W, 3], from frame `first` on; a negative `first` is before its start."""
    centres = path(clip, num_frames, height, width, first)
    return compose(clip, coverage(clip.shape, frame_radius(clip, height, width), centres, height, width))
