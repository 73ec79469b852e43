"""Checks requests for a video before they reach a model; types of request and answer."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from magic141.config.errors import nearest
from magic141.data.videos.pictures import UNREADABLE, upright_rgb
from magic141.errors import UserError, shortened
from magic141.serving.config import MIN_SECONDS, Limits

FIELDS = ("image", "prompt", "seconds", "seed")
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_SEED = 2**32 - 1
MALFORMED, TOO_LARGE, INVALID = 400, 413, 422


class RequestError(UserError):
    """A mistake in one field of a request.

    Attributes:
        status: status of the HTTP answer.
        record: field, value, expected and remedy, for machines.
    """

    def __init__(self, field: str, value: object, expected: str, remedy: str, status: int = INVALID) -> None:
        super().__init__(f"{field} = {value}: expected {expected}; {remedy}")
        self.status = status
        self.record = {"field": field, "value": str(value), "expected": expected, "remedy": remedy}


@dataclass(frozen=True)
class VideoRequest:
    """A checked request: image uint8 [H, W, 3], prompt, length in seconds (None: one window), seed of the noise."""

    image: npt.NDArray[np.uint8]
    prompt: str
    seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Video:
    """An answer: the mp4 file, notes on what of the prompt was not understood, and the seconds that it took."""

    mp4: bytes
    remarks: tuple[str, ...]
    seconds: float


def check_names(fields: Sequence[tuple[str, object]]) -> None:
    """Raises RequestError for the first field of a form that is unknown, or given more than once.

    Left unsaid, a slip in a name gives a video with another seed or length than was asked for.
    """
    names = [name for name, _ in fields]
    for name, value in fields:
        if name not in FIELDS:
            shown = _short(value) if isinstance(value, str) else _kind(value)
            known, hint = f"only the fields {', '.join(FIELDS)}", nearest(name, FIELDS)
            raise RequestError(_short(name), shown, known, hint, MALFORMED)
        if names.count(name) > 1:
            raise RequestError(name, f"given {names.count(name)} times", "one value", "send it once", MALFORMED)


def check_request(fields: Mapping[str, object], limits: Limits) -> VideoRequest:
    """Reads image, prompt, seconds and seed, given as text or as values; the last two may be left out.

    Raises:
        RequestError: for the first invalid field.
    """
    prompt = _prompt(fields.get("prompt"), limits)
    seconds, seed = _seconds(fields.get("seconds"), limits), _seed(fields.get("seed"))
    return VideoRequest(_picture(fields.get("image"), limits), prompt, seconds, seed)


def _prompt(prompt: object, limits: Limits) -> str:
    if not isinstance(prompt, str):
        raise RequestError("prompt", _kind(prompt), "a string", "say what happens in the video", MALFORMED)
    if not prompt.strip():
        raise RequestError("prompt", "(empty)", "a description", "say what happens in the video")
    if len(prompt) > limits.max_prompt_chars:
        value, expected = f"{len(prompt)} characters", f"at most {limits.max_prompt_chars}"
        raise RequestError("prompt", value, expected, "shorten it")
    return prompt


def _seconds(seconds: object, limits: Limits) -> float | None:
    if _is_missing(seconds):
        return None
    expected = f"a number from {MIN_SECONDS:g} to {limits.max_seconds:g}"
    length = _number(seconds, "seconds", expected)
    if not MIN_SECONDS <= length <= limits.max_seconds:
        raise RequestError("seconds", _short(seconds), expected, "change it, or leave it out for one window")
    return length


def _seed(seed: object) -> int:
    if _is_missing(seed):
        return 0
    expected = f"a whole number from 0 to {MAX_SEED}"
    number = _number(seed, "seed", expected)
    if not 0 <= number <= MAX_SEED or number != int(number):
        raise RequestError("seed", _short(seed), expected, "change it, or leave it out for 0")
    return int(number)


def _number(value: Any, field: str, expected: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(field, _short(value), expected, "change it, or leave it out", MALFORMED) from None


def _picture(data: object, limits: Limits) -> npt.NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3], upright. The size is checked in the header, before the picture is decoded."""
    if not isinstance(data, bytes):
        raise RequestError("image", _kind(data), "the bytes of a picture", "send a PNG, JPEG or WebP file", MALFORMED)
    check_image_bytes(len(data), limits)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > limits.max_image_pixels:
                raise _too_many_pixels(f"{image.width} x {image.height}", limits)
            return upright_rgb(image)
    except RequestError:
        raise
    except Image.DecompressionBombError:  # PIL's own limit, at which it names no size
        raise _too_many_pixels(f"{len(data)} bytes", limits) from None
    except UNREADABLE:
        raise RequestError("image", f"{len(data)} bytes", "a readable picture", "send a PNG, JPEG or WebP") from None


def _too_many_pixels(value: str, limits: Limits) -> RequestError:
    return RequestError("image", value, f"at most {limits.max_image_pixels} pixels", "scale it down")


def check_image_bytes(size: int, limits: Limits) -> None:
    """Raises RequestError if the encoded picture is too large."""
    if size > limits.max_image_bytes:
        value, expected = f"{size} bytes", f"at most {limits.max_image_bytes}"
        raise RequestError("image", value, expected, "scale it down, or save it as JPEG", TOO_LARGE)


def _is_missing(value: object) -> bool:
    """Whether a value is absent, empty in a form, or NaN in a table."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _kind(value: object) -> str:
    return "(missing)" if _is_missing(value) else type(value).__name__


def _short(value: object) -> str:
    return shortened(str(value), 40)
