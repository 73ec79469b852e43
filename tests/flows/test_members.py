"""Members of a sweep in processes of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.members import MemberOutcome, run_members
from flows.planning.grid import CheckedMember, check_members, members_of
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


@dataclass(frozen=True)
class Run:
    """Waits for the other member, and ends as its own one's label says."""

    parent: str = "a1b2"

    def __call__(self, member: CheckedMember) -> MemberOutcome:
        print(f"{member.label} begins")
        (member.config.home / f"begun-{member.label}").touch()
        wait_for(lambda: len(list(member.config.home.glob("begun-*"))) == 2)  # they run at once
        if member.label == "seed 1":
            os._exit(7)
        return MemberOutcome(label=member.label, run_id="c3d4")


def test_members_run_at_once_and_one_whose_process_is_killed_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody asks it anything
    members = check_members(SMOKE, members_of(["seed=1,2"], []), [f"workspace={tmp_path}"])
    run: Any = Run()
    killed, other = run_members(run, members, num_parallel=2)
    log_file = tmp_path / "sweeps" / "a1b2" / "001.log"
    assert killed.error == f"its process ended with exit code 7: see {log_file}"
    assert "seed 1 begins" in log_file.read_text()
    assert other.run_id == "c3d4"
