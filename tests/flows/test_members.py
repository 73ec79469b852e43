"""Members of a sweep in processes of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.members import MemberOutcome, run_members
from flows.planning.grid import Member
from magic141.config import load_config
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


@dataclass(frozen=True)
class Run:
    """Waits for the other member, and ends as its own one's label says."""

    parent: str = "a1b2"

    def __call__(self, member: Member, values: Any) -> MemberOutcome:
        print(f"{member.label} begins")
        (values.home / f"begun-{member.label}").touch()
        wait_for(lambda: len(list(values.home.glob("begun-*"))) == 2)  # they run at once
        if member.label == "seed 1":
            os._exit(7)
        return MemberOutcome(label=member.label, run_id="c3d4")


def test_members_run_at_once_and_one_whose_process_is_killed_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody asks it anything
    members = [Member((("seed", str(seed)),)) for seed in (1, 2)]
    configs = [load_config(SMOKE, [f"workspace={tmp_path}", *member.overrides]) for member in members]
    run: Any = Run()
    killed, other = run_members(run, members, configs, num_parallel=2)
    log_file = tmp_path / "sweeps" / "a1b2" / "001.log"
    assert killed.error == f"its process ended with exit code 7: see {log_file}"
    assert "seed 1 begins" in log_file.read_text()
    assert other.run_id == "c3d4"
