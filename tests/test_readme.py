"""What the README draws is what the stages say."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from tasks.pipeline import STAGES

README = Path(__file__).parents[1] / "README.md"


def test_the_drawn_pipeline_has_all_stages_and_leads_to_each_from_its_inputs() -> None:
    (drawing,) = re.findall(r"```mermaid\nflowchart LR\n(.*?)```", README.read_text(), re.DOTALL)
    arrows = [pair for line in drawing.splitlines() for pair in pairwise(line.split(" --> "))]
    before: dict[str, set[str]] = {}
    for stage in STAGES:
        drawn = {source.strip() for source, target in arrows if target.strip() == stage.name}
        assert drawn <= set(stage.inputs), stage.name
        before[stage.name] = drawn.union(*(before[source] for source in drawn))
        assert before[stage.name] >= set(stage.inputs), stage.name
