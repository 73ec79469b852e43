"""A store, and runs in it whose stages a test chooses."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import pytest
from rich.console import Console

from magic141.config import PipelineConfig, with_overrides
from magic141.tracking import Tracker
from tasks.console import StageConsole
from tasks.stage import StageContext


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return Tracker(tmp_path_factory.mktemp("home"), "stages")


@pytest.fixture
def start(tracker: Tracker) -> Callable[..., StageContext]:
    def _start(*overrides: str, refresh: str = "") -> StageContext:
        config = with_overrides(PipelineConfig(workspace=tracker.workspace), overrides, "test")
        console = StageConsole(Console(file=io.StringIO(), width=200))
        parent = tracker.start_parent("test", "pipeline", {})
        return StageContext(config, tracker, parent.run_id, console, frozenset({refresh} - {""}))

    return _start
