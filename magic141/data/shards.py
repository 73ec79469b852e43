"""Writes encoded clips as numbered safetensors files with a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.data.dataset import MANIFEST_FILE

MAX_SHARD_BYTES = 2**31  # the writer holds this much per split, and as much again while it joins a shard


class ShardWriter:
    """Collects clips split by split; writes a shard whenever it has `shard_size` clips or `MAX_SHARD_BYTES`."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        self.folder = folder
        self.shard_size = shard_size
        self.num_clips: dict[str, int] = {}
        self._pending: dict[str, tuple[list[Mapping[str, Any]], list[Mapping[str, Tensor]]]] = {}
        self._num_shards: dict[str, int] = {}
        (folder / "shards").mkdir(parents=True, exist_ok=True)

    def add(self, split: str, rows: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Adds clips of one split: manifest rows without `split`, `shard`, `row`, and tensors of as many rows."""
        pending_rows, pending_tensors = self._pending.setdefault(split, ([], []))
        pending_rows.extend(rows)
        pending_tensors.append(tensors)
        self.num_clips[split] = self.num_clips.get(split, 0) + len(rows)
        is_large = sum(tensor.nbytes for part in pending_tensors for tensor in part.values()) >= MAX_SHARD_BYTES
        if is_large or len(pending_rows) >= self.shard_size:
            self._flush(split, everything=is_large)

    def close(self) -> None:
        """Writes what is left."""
        for split in list(self._pending):
            self._flush(split, everything=True)

    def _flush(self, split: str, everything: bool) -> None:
        rows, parts = self._pending.pop(split)
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
        while len(rows) >= self.shard_size or (everything and rows):
            head, rows = rows[: self.shard_size], rows[self.shard_size :]
            self._write(split, head, {name: tensor[: len(head)] for name, tensor in tensors.items()})
            tensors = {name: tensor[len(head) :] for name, tensor in tensors.items()}
        self._pending[split] = (list(rows), [tensors] if rows else [])

    def _write(self, split: str, rows: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        number = self._num_shards.get(split, 0)
        self._num_shards[split] = number + 1
        shard = f"shards/{split}-{number:05d}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.folder / shard)
        with (self.folder / MANIFEST_FILE).open("a", encoding="utf-8") as manifest:
            for index, row in enumerate(rows):
                line = {"id": row["id"], "split": split, "shard": shard, "row": index, **row}
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
