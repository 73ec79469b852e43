"""Which members a sweep has, from what is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.planning.grid import check_members, members_of
from magic141.config import load_config
from magic141.errors import UserError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


def test_a_grid_has_every_combination() -> None:
    members = members_of(["distill_dmd2.a_weak=0,0.5", "seed=1,2"], [])
    assert [member.label for member in members] == [
        "a_weak 0, seed 1",
        "a_weak 0, seed 2",
        "a_weak 0.5, seed 1",
        "a_weak 0.5, seed 2",
    ]


def test_fields_of_the_same_name_are_told_apart_by_their_sections() -> None:
    members = members_of(["seed=1,2"], ["distill_cfg.num_steps=10", "distill_dmd2.num_steps=10 seed=1"])
    assert [member.label for member in members] == [
        "seed 1",
        "seed 2",
        "distill_cfg.num_steps 10",
        "distill_dmd2.num_steps 10, seed 1",
    ]
    assert members[3].without("seed").label == "distill_dmd2.num_steps 10"


def test_values_may_be_lists_and_words() -> None:
    members = members_of(["generate.few_steps=[4],[8, 4]", "distill_dmd2.sampler=euler"], [])
    configs = [load_config(DEMO, member.overrides) for member in members]
    assert [config.generate.few_steps for config in configs] == [(4,), (8, 4)]
    assert {config.distill_dmd2.sampler for config in configs} == {"euler"}


def test_listed_members_follow_the_grid_and_none_is_there_twice() -> None:
    members = members_of(["seed=1,2"], ["seed=2", "seed=3 distill_dmd2.a_weak=0"])
    assert [member.overrides for member in members] == [["seed=1"], ["seed=2"], ["seed=3", "distill_dmd2.a_weak=0"]]


@pytest.mark.parametrize(
    ("vary", "listed", "line"),
    [
        ([], [], "expected two or more members"),
        (["seed=1"], [], "^sweep: expected two or more members"),
        (["seed=1,1"], [], "^sweep: seed 1 alone, however often; expected two or more members"),
        (["seed"], [], "--vary seed: expected FIELD=VALUE,VALUE"),
        (["seed=[1"], [], r"--vary seed=\[1: not YAML .*; expected FIELD=VALUE,VALUE"),
        ([], ["seed"], "--member seed: expected FIELD=VALUE"),
        ([], ["'seed=1"], "--member 'seed=1: expected FIELD=VALUE FIELD=VALUE …, each quote closed, such as 'seed=1 "),
        ([], ["seed=1 name=a\\"], "--member seed=1 name=a.: expected FIELD=VALUE"),
        (["seed=1,2", "seed=3,4"], [], "--vary: seed is given twice"),
        ([], ["seed=1 seed=2", "seed=3"], "--member seed=1 seed=2: seed is given twice"),
        (["seed='1,2"], [], "--vary seed='1,2: not YAML .*; expected FIELD=VALUE,VALUE"),
        (["name=2024-02-30,a"], [], "--vary name=2024-02-30,a: not YAML .*day is out of range"),
        (["seed=" + "[" * 3000], [], "--vary seed=.*: nested too deeply"),
        (["seed=" + ",".join(map(str, range(300)))], [], "300 members; expected at most 200"),
    ],
)
def test_mistakes_are_named(vary: list[str], listed: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        members_of(vary, listed)


def test_members_share_a_workspace() -> None:
    with pytest.raises(UserError, match="member workspace a: all members of a sweep share a workspace; give it as --"):
        check_members(DEMO, members_of(["workspace=a,b"], []), [])
