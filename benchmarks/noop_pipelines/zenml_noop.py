"""Seven stages in ZenML, cached as by default: python zenml_noop.py SETTING."""

import sys

from noop import NUM_STAGES, work
from zenml import pipeline, step


@step
def first() -> str:
    """Stage 1."""
    return work(1, "")


@step
def following(before: str, number: int, setting: str = "") -> str:
    """A stage after the first."""
    return work(number, before, setting)


@pipeline
def noop(setting: str) -> None:
    """The chain."""
    text = first()
    for number in range(2, NUM_STAGES):
        text = following(text, number)
    following(text, NUM_STAGES, setting)


if __name__ == "__main__":
    noop(sys.argv[1])
