"""What the benchmarks write says what it rests on."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


@pytest.mark.parametrize(("full", "verdict"), [(2.0, "holds, by calculation"), (1.0, "does not hold, by calculation")])
def test_what_a_shared_base_saves_is_judged_by_its_figures(
    full: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = script("paper_claims", monkeypatch)
    monkeypatch.setattr(claims, "_dmd2_gb", lambda _, fake: 1.0 if fake == "lora" else full)
    evidence = claims.Evidence(str(ROOT / "configs" / "demo.yaml"), Path(), [0, 1, 2])
    assert claims.shared_base(evidence).verdict == verdict


def test_a_calculated_claim_has_no_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"claim": "a", "figures": "b", "verdict": "c", "seeds": []}
    assert "| a | b | - | c |" in script("paper_claims", monkeypatch)._table({"shared_base": row})


def test_cpu_seconds_say_what_they_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    times = script("pipeline_times", monkeypatch)
    table = times.table("demo.yaml", [times.Timing("`run`", "magic141 run", 2.0, 1.0, 0.0, "")])
    assert "| command | wall s | CPU s, without Ray's workers |" in table
