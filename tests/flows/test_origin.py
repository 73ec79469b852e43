"""What can be taken up again."""

from pathlib import Path

import pytest

from flows.origin import find_origin
from magic141.errors import UserError
from magic141.tracking import Tracker


def test_a_deleted_run_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it made may be freed at any time."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "origin")
    run = tracker.start_parent("test", "pipeline", {})
    run.close("FINISHED")
    tracker.client.delete_run(run.run_id)
    with pytest.raises(UserError, match=rf"run {run.run_id}: it was deleted.*restore it"):
        find_origin(tmp_path, run.run_id)
