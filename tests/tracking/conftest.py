"""A real SQLite store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from magic141.tracking import Tracker


@pytest.fixture(scope="package")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Tracker(tmp_path_factory.mktemp("home"), "tests")
