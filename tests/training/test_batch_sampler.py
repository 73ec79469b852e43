from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magic141.data.dataset import ClipDataset
from magic141.training.batch_sampler import BatchSampler, _order, own_share
from magic141.training.config import PlacementConfig
from magic141.training.context import TrainContext


def test_a_pass_sees_every_clip_once_even_across_batches() -> None:
    sampler = BatchSampler(num_clips=10, batch_size_per_worker=4, seed=1)
    seen = torch.cat([sampler.indices(step) for step in range(5)])  # two passes in five batches
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_workers_share_out_the_batch_of_one() -> None:
    one = BatchSampler(10, 4, seed=1)
    two = [BatchSampler(10, 2, rank, num_shares=2, seed=1) for rank in range(2)]
    for step in range(7):
        assert torch.equal(one.indices(step), torch.cat([worker.indices(step) for worker in two]))


@pytest.mark.parametrize(("size", "rows"), [(1, [2, 2, 2, 2]), (2, [4, 4, 4, 4])])
def test_workers_that_split_tokens_validate_the_same_clips(
    folders: Path, tmp_path: Path, size: int, rows: list[int]
) -> None:
    data, placement = (
        ClipDataset.open(folders / "data", "train"),
        PlacementConfig(num_workers=4, sequence_parallel_size=size),
    )
    contexts = [TrainContext(rank, 4, torch.device("cpu"), tmp_path, 0, placement) for rank in range(4)]
    shares = [own_share(data, 8, context).tolist() for context in contexts]
    assert [len(share) for share in shares] == rows
    assert sorted(row for share in shares[::size] for row in share) == list(range(8))
    assert all(share == shares[rank - rank % size] for rank, share in enumerate(shares))


def test_is_a_pure_function_of_the_step() -> None:
    first = BatchSampler(50, 8, seed=2).indices(33)
    _order.cache_clear()  # as in a process that resumes
    assert torch.equal(BatchSampler(50, 8, seed=2).indices(33), first)


def test_no_seeds_pass_is_a_later_one_of_another_seed() -> None:
    passes = [BatchSampler(50, 50, seed=seed).indices(step).tolist() for seed in range(3) for step in range(3)]
    assert all(passes.count(one) == 1 for one in passes)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"\(12, 10\)"):
        BatchSampler(10, 6, num_shares=2)
