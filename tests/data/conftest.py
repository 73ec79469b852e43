"""What tests of data share."""

from __future__ import annotations

import pytest

from tests.data.attempts import Here, without_ray


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return without_ray(monkeypatch)
