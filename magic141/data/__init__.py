"""Clips: sources, decoding, the demo's captioned world, and the prepared data set."""
