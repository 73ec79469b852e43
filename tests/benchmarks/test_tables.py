"""What the benchmarks write says what it rests on."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
from pathlib import Path
from types import ModuleType

import pytest

from magic141.environment import installed_version
from tasks.provenance import git_commit

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


def test_results_say_on_what_machine_and_with_which_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = script("documents", monkeypatch)
    monkeypatch.setattr(documents, "RESULTS", tmp_path / "results")
    documents.store_results("times", "| a |", timings=[1.5])
    stored = json.loads((tmp_path / "results" / "times.json").read_text())
    assert stored["timings"] == [1.5]
    made_with = stored["made_with"]
    assert f"{os.cpu_count()} cores ({made_with['cpu']}, " in made_with["machine"]
    assert (made_with["git_commit"], made_with["python"]) == (git_commit(), platform.python_version())
    assert made_with["libraries"]["torch"] == installed_version("torch")
    assert platform.node() not in made_with["machine"]
    assert (tmp_path / "results" / "times.md").read_text() == "| a |\n"


def test_all_scripts_store_results_by_the_same_function() -> None:
    writing = [
        file.name for file in (ROOT / "benchmarks").glob("*.py") if re.search("RESULTS /.*write", file.read_text())
    ]
    assert writing == ["documents.py"]


def test_a_claim_judged_before_keeps_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = script("paper_claims", monkeypatch)
    (file := tmp_path / "claims.json").write_text(
        '{"made_with": {"machine": "b"}, "int8": {"made_with": {"machine": "a"}}}'
    )
    assert claims._stored(file) == {"int8": {"made_with": {"machine": "a"}}}
    assert claims._stored(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.9, 0.92, 0.94], "holds"),
        ([0.94, 1.04, 1.0], "not decided, within noise"),
        ([1.06, 1.05, 1.07], "does not hold here"),
        ([0.5, float("inf"), 0.5], "does not hold here"),  # one seed never got there
    ],
)
def test_scatter_decides_nothing(values: list[float], verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = script("verdicts", monkeypatch)
    assert verdicts.at_most(values, 1.0) == verdict
    assert verdicts.at_least([-value for value in values], -1.0) == verdict


def test_a_target_shows_which_seeds_miss_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table = script("scores_table", monkeypatch)
    (target,) = table.over_seeds([[table.Target("motion", value, low=0.9)] for value in (0.8, 1.0, 1.2)])
    assert target.row() == "| motion | ≥ 0.9 | 1 | **0.8**, 1, 1.2 | met |"
