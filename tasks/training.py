"""Constants that the training stages share."""

from __future__ import annotations

TRAINING_CODE = ("magic141.training.train", "magic141.training.loop")  # modules that start workers are in NOT_CODE
VOLATILE = ("training.json", "metrics.jsonl")  # times and memory: equal weights shall give equal artifacts
