"""Where a training's random numbers come from: generators of one step, and the global ones of a process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_NO_SHARE = 4095  # in place of a share


def step_generator(seed: int, step: int, share: int = 0) -> torch.Generator:
    """The random generator of one step for one share; it depends only on the arguments, so resuming needs no state.

    Training counts `step` from 0. The warm-up of DMD2's fake score counts on behind the last step. Negative numbers
    belong to validation, whose draws are the same every time: -1 to its loss, and to the noise on DMD2's pictures; -2
    to the conditions of DMD2's clips, and one number down for each of their seeds.
    """
    mixed = (seed * 1_000_003 + step) * 4099 + share
    return torch.Generator().manual_seed(mixed % 2**63)


def shared_generator(seed: int, step: int) -> torch.Generator:
    """The random generator of what all shares must draw alike in one step."""
    return step_generator(seed, step, _NO_SHARE)


def random_state() -> dict[str, Any]:
    """The state of every global random generator of this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": np.random.get_state(), "python": random.getstate()}


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Afterwards the global random generators are as they were before the block."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def seed_everything(seed: int, share: int) -> None:
    """Seeds all global generators of a worker from (seed, share)."""
    mixed = int(np.random.SeedSequence([seed, share]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)
