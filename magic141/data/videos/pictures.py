"""From an image that PIL has opened to the picture that a viewer would see: upright, in colour, no alpha."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from magic141.data.videos.pixels import Frames

# what PIL raises for a damaged file; struct.error is of damaged EXIF
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, struct.error)
_OF_16_BITS = 65535 // 255  # what a level of 8 bits is in 16


def upright_rgb(image: Image.Image) -> Frames:
    """Pixels uint8 [H, W, 3]; what is transparent is black, as in videos."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # grey of 16 bits, of which `convert` would make all but the darkest white
        grey = np.clip(np.asarray(upright) // _OF_16_BITS, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.has_transparency_data:
        layers, shown = upright.convert("RGBA"), Image.new("RGB", upright.size)
        shown.paste(layers, mask=layers)
        return np.asarray(shown)
    return np.asarray(upright.convert("RGB"))
