"""Rows in parts are indexed as if they were one tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from magic141.data.rows import Rows

WHOLE = torch.arange(11 * 2 * 5).reshape(11, 2, 5)
ROWS = Rows(WHOLE.split([4, 4, 3]))
INDICES: list[Any] = [
    0,
    7,
    -1,
    slice(None),
    slice(2, 9, 3),
    slice(20, None),
    [10, 3, 3, -2],
    [],
    torch.tensor([8, 0, 4]),
    (5, slice(None), slice(1, 3)),
    (slice(None), slice(None), slice(None, 2)),
    (slice(None), 0),
    ([3, 4], slice(None), slice(1, None)),
    (torch.tensor([9, 2]), 1, 2),
    ([], slice(None), slice(1, 2)),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_rows_are_those_of_the_concatenated_tensor(index: Any) -> None:
    assert torch.equal(ROWS[index], WHOLE[index])
    assert (len(ROWS), ROWS.shape) == (11, WHOLE.shape)


@pytest.mark.parametrize("index", [11, -12, [0, 11]], ids=str)
def test_there_are_no_other_rows(index: Any) -> None:
    with pytest.raises(IndexError):
        ROWS[index]


def test_several_rows_are_a_copy_and_may_be_written_to() -> None:
    picked = ROWS[[0, 1]]
    picked[:] = -1
    assert (WHOLE >= 0).all()


def test_halves_are_given_as_float32_whatever_the_precision_of_their_part() -> None:
    values = torch.randn(6, 3).bfloat16().float()
    rows = Rows([values[:2].bfloat16(), values[2:3], values[3:].bfloat16()])
    for index in (0, 2, slice(None), [5, 2, 0], (slice(None), slice(1, 3))):
        assert rows[index].dtype == torch.float32
        assert torch.equal(rows[index], values[index])
    assert rows[[]].dtype == torch.float32
    assert rows.shape == (6, 3)
    assert Rows([torch.zeros(2, 3, dtype=torch.uint8)])[:].dtype == torch.uint8


def test_rows_of_several_shapes_are_had_shape_by_shape() -> None:
    wide, tall = torch.arange(6 * 4).reshape(6, 1, 4), torch.arange(100, 100 + 5 * 6).reshape(5, 3, 2)
    rows = Rows([wide[:2], tall[:3], wide[2:], tall[3:]])
    of_wide, of_tall = rows.by_shape()
    assert (of_wide.tolist(), of_tall.tolist()) == ([0, 1, 5, 6, 7, 8], [2, 3, 4, 9, 10])
    assert torch.equal(rows[of_wide], wide)
    assert torch.equal(rows[of_tall], tall)
    with pytest.raises(RuntimeError, match="equal size"):
        rows[[0, 2]]
    batches = list(rows.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1, 2, 2, 2]
    assert torch.equal(torch.cat([batch for batch in batches if batch.shape[1:] == (3, 2)]), tall)


def test_batches_of_one_shape_take_no_notice_of_parts() -> None:
    assert [len(batch) for batch in ROWS.batches(5)] == [5, 5, 1]
    assert torch.equal(torch.cat(list(ROWS.batches(5))), WHOLE)
    (everything,) = ROWS.by_shape()
    assert everything.tolist() == list(range(11))
