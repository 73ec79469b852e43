"""Tests."""

import magic141  # noqa: F401  (before diffusers: a torchvision that does not fit torch must not stop a test)
