"""What parent runs are called, and what their pages say."""

from __future__ import annotations

import pytest

from flows.records.naming import MAX_NAME_CHARS, description, overrides_tag, run_name
from magic141.artifacts.references import ArtifactRef


@pytest.mark.parametrize(
    ("kind", "overrides", "name"),
    [
        ("pipeline", [], "demo"),
        ("evaluation", [], "demo · eval"),
        ("pipeline", ["distill_dmd2.a_weak=0.25", "seed=1", "workspace=/x"], "demo · a_weak=0.25, seed=1"),
        ("pipeline", [f"a.b{n}={n}" for n in range(6)], "demo · 2 more, b2=2, b3=3, b4=4, b5=5"),
        ("pipeline", ["x.n=1", "y.n=2", "y.m=3", "y.m=4"], "demo · x.n=1, y.n=2, m=3, m=4"),
        ("pipeline", ["data.path=s3://ada:s3cret@bucket"], "demo · path=s3://bucket"),
    ],
)
def test_a_run_is_called_by_what_was_set(kind: str, overrides: list[str], name: str) -> None:
    assert run_name("demo", kind, overrides) == name


def test_a_name_is_no_longer_than_a_database_takes() -> None:
    name = run_name("n" * 250, "evaluation", [f"a.b{n}={'x' * 99}" for n in range(4)])
    assert len(name) == MAX_NAME_CHARS
    assert name.endswith("…")


def test_all_that_was_set_is_kept_without_passwords() -> None:
    assert overrides_tag([]) == {}
    kept = overrides_tag(["a.b=[1, 2]", "data.path=s3://ada:s3cret@bucket"])
    assert kept == {"magic141.overrides": "--set 'a.b=[1, 2]' --set data.path=s3://bucket"}


def test_the_page_says_what_came_out_and_which_runs_made_it() -> None:
    refs = {
        stage: ArtifactRef(stage=stage, key="k", uri="/x", digest="d", run_id=f"{number}23456789")
        for number, stage in enumerate(("prepare_data", "evaluate"))
    }
    lines = description("student: motion 0.8", "magic141 run --run abc", "1", refs, ["evaluate"]).splitlines()
    assert lines[0] == "**student: motion 0.8**"
    assert lines[2] == "Again: `magic141 run --run abc`"
    assert lines[-2:] == [
        "| prepare_data | [02345678](#/experiments/1/runs/023456789) | reused |",
        "| evaluate | [12345678](#/experiments/1/runs/123456789) | made |",
    ]
