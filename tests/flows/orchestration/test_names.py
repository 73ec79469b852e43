from typing import Any

import pytest

from flows.orchestration.names import name_of


@pytest.mark.parametrize(
    ("flow", "parameters", "name"),
    [
        ("magic141", {"config": "team/configs/demo.yaml", "overrides": None}, "demo"),
        ("magic141", {"config": "demo.yaml", "overrides": ["distill_dmd2.a_weak=0.25"]}, "demo · a_weak=0.25"),
        ("magic141-rerun", {"origin": "1f2e3d4c5b6a7988", "overrides": ["seed=1"]}, "1f2e3d4c · seed=1"),
        ("magic141-evaluation", {"run_id": None, "model": "models:/m@champion"}, "models:/m@champion · eval"),
        ("magic141-sweep", {"config": "demo.yaml", "vary": ["seed=1,2"]}, "demo · sweep"),
    ],
)
def test_a_flow_run_is_named_by_what_it_works_on_and_what_was_set(
    flow: str, parameters: dict[str, Any], name: str
) -> None:
    assert name_of(flow, parameters) == name
