from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magic141.data.dataset import ClipDataset
from magic141.training.batch_sampler import BatchSampler, _order, own_share
from magic141.training.config import PlacementConfig
from magic141.training.context import TrainContext


def clips(*nums: int) -> list[torch.Tensor]:
    """Rows of so many clips of each size."""
    return list(torch.arange(sum(nums)).split(list(nums)))


def test_a_pass_sees_every_clip_once_even_across_batches() -> None:
    sampler = BatchSampler(clips(10), batch_size_per_worker=4, seed=1)
    seen = torch.cat([sampler.indices(step) for step in range(5)])  # two passes in five batches
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_workers_share_out_the_batch_of_one() -> None:
    one = BatchSampler(clips(10), 4, seed=1)
    two = [BatchSampler(clips(10), 2, rank, num_shares=2, seed=1) for rank in range(2)]
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


def test_a_batch_is_of_one_size_on_all_workers() -> None:
    groups = clips(50, 13, 3)
    workers = [BatchSampler(groups, 2, rank, num_shares=2, seed=1) for rank in range(2)]
    of_size = torch.repeat_interleave(torch.tensor([50, 13, 3]))
    for step in range(200):
        rows = torch.cat([worker.indices(step) for worker in workers])
        assert len(of_size[rows].unique()) == 1


def test_sizes_come_as_often_as_they_have_clips_and_never_in_blocks() -> None:
    groups = clips(50, 13, 3)
    sampler, num_steps = BatchSampler(groups, 4, seed=1), 66 * 10 // 4
    batches = [sampler.indices(step) for step in range(num_steps)]
    for rows in groups:
        seen = [row for batch in batches for row in batch.tolist() if row in rows]
        passes = list(zip(*[iter(seen)] * len(rows), strict=False))
        assert len(passes) in (9, 10)
        assert all(sorted(one) == rows.tolist() for one in passes), "every clip once, before any comes again"
    first = [batch[0] < 50 for batch in batches[:16]]
    assert 9 <= sum(first) < 16, "mixed within a pass"
    assert first != sorted(first)
    assert first != sorted(first, reverse=True)


def test_a_size_of_few_clips_has_its_first_batch_once_they_fill_one() -> None:
    sampler = BatchSampler(clips(32, 2), 8, seed=0)
    taken = [sampler.batches_before(step) for step in range(40)]
    assert [sum(one) for one in taken] == list(range(40))
    assert taken[12][1] == 0, "after fewer than four passes of 34 clips in batches of 8"
    assert taken[39][1] == 2
    for step in range(39):
        of_few = bool(sampler.indices(step)[0] >= 32)
        assert [after - before for before, after in zip(taken[step], taken[step + 1], strict=True)] == [
            not of_few,
            of_few,
        ]


def test_is_a_pure_function_of_the_step() -> None:
    first = BatchSampler(clips(40, 10), 8, seed=2).indices(33)
    _order.cache_clear()  # as in a process that resumes
    assert torch.equal(BatchSampler(clips(40, 10), 8, seed=2).indices(33), first)


def test_no_seeds_pass_is_a_later_one_of_another_seed() -> None:
    passes = [BatchSampler(clips(50), 50, seed=seed).indices(step).tolist() for seed in range(3) for step in range(3)]
    assert all(passes.count(one) == 1 for one in passes)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"\(12, 10\)"):
        BatchSampler(clips(10), 6, num_shares=2)
