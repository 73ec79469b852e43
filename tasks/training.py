"""What the training stages share."""

from __future__ import annotations

TRAINING_CODE = ("magic141.training.loop",)
VOLATILE = ("training.json", "metrics.jsonl")  # seconds and memory: equal weights are an equal artifact
