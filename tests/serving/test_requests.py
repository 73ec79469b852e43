from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from magic141.serving.config import Limits
from magic141.serving.requests import RequestError, check_names, check_request
from tests.data.made import with_damaged_exif
from tests.serving.conftest import picture


def png_header(width: int, height: int) -> bytes:
    """All that is read of a picture that claims to be far too large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + bytes(4)
        + b"IDAT"
    )


LIMITS = Limits(max_image_bytes=20_000, max_image_pixels=4000, max_prompt_chars=20, max_seconds=5)
GOOD = {"image": picture(), "prompt": "it moves"}


def test_fields_are_read_as_text_and_as_values() -> None:
    text = check_request({**GOOD, "seconds": "1.5", "seed": "7"}, LIMITS)
    assert (text.prompt, text.seconds, text.seed, text.image.shape) == ("it moves", 1.5, 7, (40, 48, 3))
    assert text.image.dtype == np.uint8
    for missing in ("", None, float("nan")):
        empty = check_request({**GOOD, "seconds": missing, "seed": missing}, LIMITS)
        assert (empty.seconds, empty.seed) == (None, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(kind: str) -> None:
    assert check_request({**GOOD, "image": picture(kind=kind)}, LIMITS).image.shape == (40, 48, 3)


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"prompt": None}, 400, "prompt = (missing): expected a string"),
        ({"prompt": 3}, 400, "prompt = int: expected a string"),
        ({"prompt": "  "}, 422, "prompt = (empty): expected a description"),
        ({"prompt": "word " * 9}, 422, "prompt = 45 characters: expected at most 20; shorten it"),
        ({"seconds": "soon"}, 400, "seconds = soon: expected a number from 0.1 to 5"),
        ({"seconds": 0}, 422, "seconds = 0: expected a number from 0.1 to 5"),
        ({"seconds": "0.0001"}, 422, "seconds = 0.0001: expected a number from 0.1 to 5"),
        ({"seconds": "5.1"}, 422, "seconds = 5.1: expected a number from 0.1 to 5"),
        ({"seconds": "nan"}, 422, "seconds = nan: expected a number from 0.1 to 5"),
        ({"seconds": "inf"}, 422, "seconds = inf: expected a number from 0.1 to 5"),
        ({"seed": "1.5"}, 422, "seed = 1.5: expected a whole number from 0 to"),
        ({"seed": "-1"}, 422, "seed = -1: expected a whole number from 0 to"),
        ({"seed": "inf"}, 422, "seed = inf: expected a whole number from 0 to"),
        ({"seed": "nan"}, 422, "seed = nan: expected a whole number from 0 to"),
        ({"seed": 10**400}, 400, "seed = 1000"),
        ({"seed": [1]}, 400, "seed = [1]: expected a whole number from 0 to"),
        ({"image": None}, 400, "image = (missing): expected the bytes of a picture"),
        ({"image": "cat.png"}, 400, "image = str: expected the bytes of a picture"),
        ({"image": b"GIF89a, or so"}, 422, "image = 13 bytes: expected a readable picture"),
        ({"image": picture(kind="BMP")}, 422, "expected a readable picture; send a PNG, JPEG or WebP"),
        ({"image": picture()[:-2000]}, 422, "expected a readable picture"),
        ({"image": with_damaged_exif()}, 422, "expected a readable picture"),
        ({"image": picture(100, 41)}, 422, "image = 100 x 41: expected at most 4000 pixels; scale it down"),
        ({"image": png_header(20_000, 10_000)}, 422, "bytes: expected at most 4000 pixels; scale it down"),
        ({"image": bytes(20_001)}, 413, "image = 20001 bytes: expected at most 20000"),
    ],
)
def test_one_line_says_what_is_wrong(fields: dict[str, object], status: int, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_request({**GOOD, **fields}, LIMITS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == status
    assert set(caught.value.record) == {"field", "value", "expected", "remedy"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("sed", "1")], "sed = 1: expected only the fields image, prompt, seconds, seed; did you mean 'seed'?"),
        (
            [("Prompt", b"a file")],
            "Prompt = bytes: expected only the fields image, prompt, seconds, seed; did you mean",
        ),
        ([("prompt", "a"), ("seed", "1"), ("prompt", "b")], "prompt = given 2 times: expected one value; send it once"),
    ],
)
def test_no_field_is_passed_over_in_silence(fields: list[tuple[str, object]], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_names(fields)
    assert message in str(caught.value)
    assert caught.value.status == 400


def test_what_is_just_within_the_limits_is_taken() -> None:
    largest = {"image": picture(100, 40), "prompt": "p" * 20, "seconds": 5, "seed": 2**32 - 1}
    limits = LIMITS.model_copy(update={"max_image_bytes": len(picture(100, 40))})
    request = check_request(largest, limits)
    assert (request.image.shape, request.seconds, request.seed) == ((40, 100, 3), 5, 2**32 - 1)
    assert check_request({**GOOD, "seconds": "0.1"}, LIMITS).seconds == 0.1


def test_a_picture_that_was_taken_upright_is_turned() -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6  # as a phone notes it
    Image.new("RGB", (48, 40)).save(file, "JPEG", exif=exif)
    assert check_request({**GOOD, "image": file.getvalue()}, LIMITS).image.shape == (48, 40, 3)
