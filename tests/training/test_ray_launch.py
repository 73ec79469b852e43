"""What a Ray worker does with a mistake of the user's, without Ray."""

from __future__ import annotations

import threading

import torch.distributed as dist

from magic141.training.config import PlacementConfig
from magic141.training.ray_launch import all_workers_failed_alike, torch_config


def answers(num_mistaken: int, world_size: int, timeout_s: float) -> list[bool]:
    """What each of the first `num_mistaken` workers finds."""
    store, found = dist.HashStore(), list[bool]()  # type: ignore[attr-defined]

    def fail(rank: int) -> None:
        found.append(all_workers_failed_alike(store, rank, world_size, timeout_s))

    workers = [threading.Thread(target=fail, args=(rank,)) for rank in range(num_mistaken)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def test_a_mistake_that_all_workers_come_to_is_the_users() -> None:
    assert answers(num_mistaken=3, world_size=3, timeout_s=60) == [True, True, True]


def test_a_mistake_of_some_workers_is_a_failure_as_the_others_wait_for_them() -> None:
    assert answers(num_mistaken=2, world_size=3, timeout_s=0.1) == [False, False]


def test_workers_wait_until_a_checkpoint_of_the_13b_is_on_a_slow_disk() -> None:
    assert torch_config(PlacementConfig()).timeout_s > 260e9 / 125e6
