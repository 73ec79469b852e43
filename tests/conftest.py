"""What the tests must not inherit from whoever starts them, and which of them share a worker of pytest-xdist."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# `make servers` tells people to set the first two; tests that want a server start their own.
for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_ADDRESS", "MAGIC141_NOTIFY_URL", "MAGIC141_HOME"):
    os.environ.pop(variable, None)
os.environ.pop("FORCE_COLOR", None)  # rich takes every stream for a terminal then
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's commands in the background ignore Ctrl-C
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"  # where the tests' own servers are

ONE_RUN = "tests/flows/tiny/"


class _Scheduling(LoadFileScheduling):
    """A file's tests share a worker; so do those of the folder whose tests share one finished run."""

    def _split_scope(self, nodeid: str) -> str:
        return ONE_RUN if nodeid.startswith(ONE_RUN) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return _Scheduling(config, log) if config.option.dist == "loadfile" else None
