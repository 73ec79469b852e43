"""Pictures of kinds that are not plain RGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from magic141.data.videos.pictures import upright_rgb

GREEN, HIDDEN = (0, 128, 0), (255, 0, 255)


def shown(image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    """The picture, once stored and read again."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return upright_rgb(Image.open(file))


def test_grey_of_16_bits_keeps_its_levels() -> None:
    levels = np.array([[0, 257, 128 * 257, 200 * 257 + 100, 65535]], np.uint16)
    assert shown(Image.fromarray(levels)).tolist() == [[[level] * 3 for level in (0, 1, 128, 200, 255)]]


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_what_is_transparent_is_black_whatever_colour_it_hides(kind: str, options: dict[str, object]) -> None:
    layers = np.full((32, 32, 4), (*HIDDEN, 0), np.uint8)
    layers[16:] = (*GREEN, 255)
    layers[:, 16:, 3] //= 2
    picture = shown(Image.fromarray(layers), kind, **options)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[-1, 0].tolist() == list(GREEN)
    assert picture[-1, -1].tolist() == [0, 64, 0]


def test_one_colour_may_be_the_transparent_one() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*HIDDEN, *GREEN])
    palette.putpixel((1, 0), 1)
    for image, hidden in ((palette, 0), (palette.convert("RGB"), HIDDEN)):
        assert shown(image, transparency=hidden).tolist() == [[[0, 0, 0], list(GREEN)]]


@pytest.mark.parametrize(("mode", "colour"), [("L", 200), ("1", 1), ("CMYK", (0, 255, 255, 0)), ("RGB", GREEN)])
def test_other_modes_have_three_channels_and_are_upright(mode: str, colour: int | tuple[int, ...]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # as a phone notes it
    image = Image.new(mode, (48, 40), colour)
    assert shown(image, "JPEG" if mode == "CMYK" else "PNG", exif=exif).shape == (48, 40, 3)
