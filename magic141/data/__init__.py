"""Data: sources of clips, decoding, the demo's captioned world, and the prepared data set."""
