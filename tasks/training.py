"""What the training stages share."""

from __future__ import annotations

TRAINING_CODE = ("magic141.training.train", "magic141.training.loop")  # what starts workers is not followed
VOLATILE = ("training.json", "metrics.jsonl")  # seconds and memory: equal weights are an equal artifact
