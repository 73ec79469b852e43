"""Seven nodes; every text is a file of the catalog."""

from functools import partial, update_wrapper

from kedro.pipeline import Pipeline, node
from noop import NUM_STAGES, work


def _first() -> str:
    return work(1, "")


def _following(number: int, before: str) -> str:
    return work(number, before)


def register_pipelines() -> dict[str, Pipeline]:
    """The chain."""
    nodes = [node(_first, None, "text_1", name="stage_1")]
    for number in range(2, NUM_STAGES):
        function = update_wrapper(partial(_following, number), _following)
        nodes.append(node(function, f"text_{number - 1}", f"text_{number}", name=f"stage_{number}"))
    last = partial(work, NUM_STAGES)
    update_wrapper(last, work)
    inputs = [f"text_{NUM_STAGES - 1}", "params:setting"]
    nodes.append(node(last, inputs, f"text_{NUM_STAGES}", name=f"stage_{NUM_STAGES}"))
    return {"__default__": Pipeline(nodes)}
