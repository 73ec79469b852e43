"""Which figures a person sees while something is trained."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tasks import console as consoles
from tasks.console import StageConsole


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        (
            [{"grad_norm": 2.0, "fake_loss": 0.5, "loss": 1.0, "steps_per_s": 9.0}, {"validation_motion_ratio": 1.1}],
            "loss 1  validation_motion_ratio 1.1  fake_loss 0.5  grad_norm 2",
        ),
        ([{"steps_per_s": 9.0, "recall": 0.5}], "recall 0.5"),
    ],
)
def test_what_tells_most_comes_first_and_the_speed_once(
    logged: list[dict[str, float]], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consoles, "PLAIN_LINE_SECONDS", 0.0)
    console = StageConsole(Console(file=io.StringIO(), width=200))
    with console.progress("train", 2, "step") as advance:
        for values in logged:
            console.values(values)
        advance(1)
    assert isinstance(console.console.file, io.StringIO)
    assert console.console.file.getvalue().rstrip().endswith(shown)
    assert "steps_per_s" not in console.console.file.getvalue()
