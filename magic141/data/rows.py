"""Rows of a field that is stored in several files, memory-mapped and read on demand."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

Index = int | slice | Sequence[int] | Tensor


class Rows:
    """Acts as the concatenation of the shards' tensors, without making that copy in memory.

    The tensors should be mapped files, as safetensors opens them: only what is used is read, and all processes of a
    machine share it. Rows are indexed like those of a tensor, by a number, a slice or a list of numbers, followed by
    numbers or slices for the other dimensions: `rows[[7, 3], :, :5]`; `rows[:]` is all of them. Halves are given as
    float32, which whatever computes with them expects; parts may differ in precision. They may differ in shape, too:
    then only rows of one shape can be had together.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = list(parts)
        self._starts = [0, *accumulate(len(part) for part in parts)]  # start of every part, and end of the last
        self._numbers = range(self._starts[-1])

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def shape(self) -> torch.Size:
        """[N, ...]; of parts that differ, the first one's."""
        return torch.Size([len(self), *self._parts[0].shape[1:]])

    def by_shape(self) -> list[Tensor]:
        """The numbers of the rows of each shape, int64 [n], in the order in which shapes come."""
        numbers: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for start, part in zip(self._starts, self._parts, strict=False):
            numbers[part.shape[1:]].append(torch.arange(start, start + len(part)))
        return [torch.cat(ranges) for ranges in numbers.values()]

    def batches(self, size: int) -> Iterator[Tensor]:
        """All rows in order, at most `size` at once and all of a batch of one shape."""
        for _, run in groupby(self._numbers, key=lambda row: self._parts[self._part_of(row)].shape[1:]):
            rows = list(run)
            yield from (self[rows[start : start + size]] for start in range(0, len(rows), size))

    def __getitem__(self, index: Index | tuple[Index, *tuple[int | slice, ...]]) -> Tensor:
        """A copy of the rows, in the given order.

        A single row (int index) is a view of the mapped file, not a copy, unless it is stored in half precision.

        Raises:
            IndexError: if there is no such row.
        """
        rows, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(rows, int):
            return self._row(rows, rest)
        assert getattr(rows, "dtype", None) != torch.bool, "numbers of rows, not a mask"
        numbers = self._numbers[rows] if isinstance(rows, slice) else torch.as_tensor(rows).tolist()
        if not numbers:
            return _whole(self._parts[0][(slice(0), *rest)])
        return torch.stack([self._row(number, rest) for number in numbers])

    def _row(self, number: int, rest: Sequence[int | slice]) -> Tensor:
        row = self._numbers[number]
        part = self._part_of(row)
        clip = self._parts[part][row - self._starts[part]]
        return _whole(clip[tuple(rest)] if rest else clip)

    def _part_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1


def _whole(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
