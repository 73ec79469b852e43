"""Seeds that never meet, and global generators that are put back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from magic141.config import LARGEST_SEED
from magic141.training.random_numbers import (
    kept_random_state,
    random_state,
    seed_everything,
    set_random_state,
    step_generator,
)


def test_the_random_numbers_of_two_seeds_that_a_config_takes_never_meet() -> None:
    last, before = step_generator(LARGEST_SEED, 0), step_generator(LARGEST_SEED - 1, 10**6, share=4098)
    assert before.initial_seed() < last.initial_seed() < step_generator(0, -100).initial_seed()


def test_a_saved_state_puts_every_generator_back() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.random()), random.random()

    state = random_state()
    drawn = draw()
    set_random_state(state)
    assert draw() == drawn


def test_global_generators_are_put_back_after_a_block_that_fails_too() -> None:
    @kept_random_state()
    def fail() -> None:
        torch.rand(())
        raise ZeroDivisionError

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_rank_has_global_generators_of_its_own() -> None:
    state = random_state()
    drawn = []
    for rank in (0, 1, 0):
        seed_everything(3, rank)
        drawn.append((float(torch.rand(())), float(np.random.random()), random.random()))
    set_random_state(state)
    assert drawn[0] == drawn[2]
    assert not set(drawn[0]) & set(drawn[1])
