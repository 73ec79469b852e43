"""Constants that the training stages share."""

from __future__ import annotations

from magic141.training.config import METRICS_FILE, RECORD_FILE

TRAINING_CODE = ("magic141.training.train", "magic141.training.loop")  # modules that start workers are in NOT_IN_KEY
VOLATILE = (RECORD_FILE, METRICS_FILE)  # times and memory: equal weights shall give equal artifacts
