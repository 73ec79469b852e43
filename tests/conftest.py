"""What the tests must not inherit from whoever starts them."""

from __future__ import annotations

import os

# `make servers` tells people to set the first two; tests that want a server start their own.
for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_ADDRESS", "MAGIC141_NOTIFY_URL", "MAGIC141_HOME"):
    os.environ.pop(variable, None)
