"""Exact scores of the shapes world: any valid future of a first frame and caption is accepted, and nothing else.

The object is measured in each frame, not compared with one stored continuation, because the caption leaves open the
speed and, for axis captions, which of two opposite directions it takes. Its start is known from the first frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magic141.data.psnr import psnr_db
from magic141.data.shapes import (
    COLOURS,
    SHAPES,
    SPEEDS,
    ShapeClip,
    background,
    compose,
    coverage,
    direction_vectors,
    frame_radius,
    frame_scale,
    path,
)

MAX_ANGLE_ERROR = np.deg2rad(22.5)  # half of the angle between two directions
MAX_PATH_ERROR = 1.0  # world pixels, root mean square distance of the centres from a straight, even path
MAX_START_ERROR = MAX_PATH_ERROR  # world pixels, distance of the first centre from the true one
SPEED_TOLERANCE = 0.25  # relative margin below the slowest and above the fastest speed of the world
AREA_RANGE = (0.5, 1.6)  # visible area relative to the true one, in every frame

Array = NDArray[np.float64]
Pixels = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Movement:
    """The object as measured in the frames of one clip. A world pixel is 1/REFERENCE_SIZE of a frame's side."""

    centres: Array  # [F, 2], pixels of the frame, unwrapped along the path
    area: Array  # [F], relative to the true area
    line: Array  # [F, 2], the best straight, even path through the centres
    velocity: Array  # [2], world pixels per frame, along that line
    path_error: float  # root mean square distance of the centres from that line, world pixels


def measure_movement(frames: NDArray[np.uint8], clip: ShapeClip) -> Movement:
    """Finds the object in `frames` [F, H, W, 3] by its difference from the known background, on the torus."""
    height, width = frames.shape[1:3]
    alpha = _alpha(frames, clip)
    sizes, scale = np.array([width, height]), frame_scale(height, width)
    centres = np.stack([_circular_mean(alpha.sum(1), width), _circular_mean(alpha.sum(2), height)], axis=1)
    steps = (np.diff(centres, axis=0) + sizes / 2) % sizes - sizes / 2
    centres = np.concatenate([centres[:1], centres[:1] + np.cumsum(steps, axis=0)])
    times = np.arange(len(centres)) - (len(centres) - 1) / 2
    velocity = (times[:, None] * centres).sum(0) / (times**2).sum()
    line = centres.mean(0) + times[:, None] * velocity
    error = float(np.sqrt((((centres - line) / scale) ** 2).sum(1).mean()))
    true_area = coverage(clip.shape, frame_radius(clip, height, width), sizes[None] / 2, height, width).sum()
    return Movement(centres, alpha.sum((1, 2)) / true_area, line, velocity / scale, error)


def score_clip(frames: NDArray[np.uint8], clip: ShapeClip, from_start: bool = True) -> dict[str, float]:
    """Scores one clip, uint8 [F, H, W, 3].

    If `from_start`, its first frame is the given condition: the object must start there, and that frame does not count
    in iou, shape, colour and the PSNRs. Otherwise the clip is a later window.

    Returns:
        direction: 1 if the object moves within 22.5 degrees of a direction that the caption allows.
        motion: 1 if it also starts where it should, is whole in every frame, and moves evenly along a line, at a speed
            of the world.
        iou: soft overlap with the true object, drawn at the measured centres.
        shape: share of the frames in which the caption's shape overlaps best.
        colour: 1 if the nearest palette colour is the caption's.
        background_psnr_db: PSNR to the true background outside the object.
        psnr_db: PSNR to the whole clip redrawn along the measured straight path.
        speed: world pixels per frame.
        plus: for axis captions with an allowed direction, 1 for the first of the two; otherwise NaN.
    """
    height, width = frames.shape[1:3]
    radius, movement = frame_radius(clip, height, width), measure_movement(frames, clip)
    made = slice(1 if from_start and len(frames) > 1 else 0, None)
    pixels, alpha = frames[made].astype(np.float32) / 255, _alpha(frames[made], clip)
    masks = {shape: coverage(shape, radius, movement.centres[made], height, width) for shape in SHAPES}
    overlaps = {shape: _soft_iou(alpha, mask) for shape, mask in masks.items()}
    best = np.max(list(overlaps.values()), axis=0)
    redrawn = compose(clip, coverage(clip.shape, radius, movement.line[made], height, width))
    speed = float(np.hypot(*movement.velocity))
    heading = _heading(movement.velocity, clip)
    whole = bool(((movement.area > AREA_RANGE[0]) & (movement.area < AREA_RANGE[1])).all())
    even = movement.path_error <= MAX_PATH_ERROR
    placed = not from_start or _start_error(movement, clip, height, width) <= MAX_START_ERROR
    low, high = SPEEDS[0] * (1 - SPEED_TOLERANCE), SPEEDS[1] * (1 + SPEED_TOLERANCE)
    return {
        "direction": float(heading is not None),
        "motion": float(heading is not None and placed and whole and even and low <= speed <= high),
        "iou": float(overlaps[clip.shape].mean()),
        "shape": float(((overlaps[clip.shape] == best) & (best > 0)).mean()),
        "colour": float(_nearest_colour(pixels, masks[clip.shape]) == clip.colour),
        "background_psnr_db": _psnr(pixels, background(clip, height, width)[None], masks[clip.shape] < 0.02),
        "psnr_db": _psnr(pixels, redrawn.astype(np.float32) / 255, np.ones(pixels.shape[:3], bool)),
        "speed": speed,
        "plus": float("nan") if clip.exact or heading is None else float(heading < 4),
    }


def score_clips(frames: NDArray[np.uint8], truths: list[dict[str, Any]], from_start: bool = True) -> dict[str, Array]:
    """Scores clips, uint8 [N, F, H, W, 3], by their ground truth; one array [N] per score of `score_clip`."""
    specs = map(ShapeClip.from_dict, truths)
    rows = [score_clip(clip, spec, from_start=from_start) for clip, spec in zip(frames, specs, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _start_error(movement: Movement, clip: ShapeClip, height: int, width: int) -> float:
    """Distance of the first centre from the true one, on the torus, in world pixels."""
    sizes = np.array([width, height])
    apart = movement.centres[0] - path(clip, 1, height, width)[0]
    return float(np.hypot(*(((apart + sizes / 2) % sizes - sizes / 2) / frame_scale(height, width))))


def _alpha(frames: NDArray[np.uint8], clip: ShapeClip) -> Array:
    """The object's opacity in each pixel: its difference from the background along the object's colour."""
    still = background(clip, *frames.shape[1:3])
    towards = np.asarray(COLOURS[clip.colour], np.float32) - still
    difference = frames.astype(np.float32) / 255 - still
    alpha = (difference * towards).sum(-1) / (towards**2).sum(-1)
    return np.asarray(np.where(alpha > 0.12, np.clip(alpha, 0, 1), 0), np.float64)


def _circular_mean(weights: Array, size: int) -> Array:
    """Mean positions on a circle of `size` pixels; weights [F, size] -> [F]."""
    angles = (np.arange(size) + 0.5) * 2 * np.pi / size
    mean = np.arctan2((weights * np.sin(angles)).sum(1), (weights * np.cos(angles)).sum(1))
    return np.asarray(mean % (2 * np.pi) * size / (2 * np.pi))


def _heading(velocity: Array, clip: ShapeClip) -> int | None:
    """The allowed direction within 22.5 degrees of the velocity, if any."""
    norm = np.hypot(*velocity)
    if norm < 1e-6:
        return None
    cosines = direction_vectors() @ (velocity / norm)
    best = max(clip.allowed_directions, key=lambda direction: cosines[direction])
    return best if cosines[best] >= np.cos(MAX_ANGLE_ERROR) else None


def _soft_iou(alpha: Array, mask: NDArray[np.float32]) -> Array:
    """Soft intersection over union of every frame, [F]."""
    union = np.maximum(alpha, mask).sum((1, 2))
    return np.asarray(np.minimum(alpha, mask).sum((1, 2)) / np.maximum(union, 1e-6))


def _nearest_colour(pixels: Pixels, mask: Pixels) -> str:
    weights = np.where(mask > 0.8, mask, 0)[..., None]
    mean = (pixels * weights).sum((0, 1, 2)) / max(float(weights.sum()), 1e-6)
    return min(COLOURS, key=lambda name: float(((mean - np.asarray(COLOURS[name])) ** 2).sum()))


def _psnr(pixels: Pixels, target: Pixels, where: NDArray[np.bool_]) -> float:
    error = ((pixels - target) ** 2).mean(-1)
    return float(psnr_db(float(error[where].mean()) if where.any() else 0.0))
