"""magic141: train, distil, quantise and score an image-to-video model, from clips to a four-step generator."""

from __future__ import annotations

from magic141 import _torchvision

__version__ = "0.1.0"

_torchvision.install()
