"""Finished runs beside each other: promotion and comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.comparison import compare
from flows.pipeline import pipeline
from flows.promotion import promote, rollback
from flows.records.session import Outcome
from magic141.errors import UserError

pytestmark = pytest.mark.slow


GATE = [{"metric": "student/motion", "better": "higher", "tolerance": 0.0}]


def test_the_gate_decides_what_becomes_the_champion(outcome: Outcome, home: Path) -> None:
    gate, unknown = ([f"publish.gate={json.dumps([GATE[0] | {'metric': m}])}"] for m in ("student/motion", "student/x"))
    with pytest.raises(UserError, match=r"publish\.gate: metric student/x: .* known: student/motion"):
        promote(home, "models:/magic141@candidate", unknown)
    first = promote(home, "models:/magic141@candidate", gate)
    assert (first.promoted, first.champion) == (True, "models:/magic141@champion")
    with pytest.raises(UserError, match="already; nothing to do"):
        promote(home, first.champion, gate)
    with pytest.raises(UserError, match="no earlier promotion"):
        rollback(home, "models:/magic141@candidate")


def test_runs_are_compared_by_their_ids(outcome: Outcome, config: str, home: Path, tmp_path: Path) -> None:
    other = pipeline(config, ["report.title=other"])
    found = compare(home, [outcome.run_id, other.run_id], "student_4", tmp_path / "page.html")
    scores, deciding, idle, _ = found.tables
    assert scores.row_count >= 1
    assert found.remarks == []
    assert (deciding.row_count, list(idle.columns[0].cells)) == (0, ["report.title"])
    assert (tmp_path / "page.html").is_file()
    mistakes = {(outcome.run_id,): "two or more", ("x", "y"): "no such run"}
    for ids, line in mistakes.items():
        with pytest.raises(UserError, match=line):
            compare(home, ids, "student_4", None)
    with pytest.raises(UserError, match=r"--variant nobody: no run has scores of it; .*student_4"):
        compare(home, [outcome.run_id, other.run_id], "nobody", None)
