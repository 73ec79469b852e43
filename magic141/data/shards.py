"""Encoded clips as numbered safetensors files, each finished or not there, and the manifest over all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from magic141.artifacts.digests import digest_file
from magic141.artifacts.publication import link_or_copy
from magic141.data.dataset import MANIFEST_FILE
from magic141.data.kept import read_record, write_record
from magic141.data.sources.chunks import Group, Place
from magic141.data.sources.splits import SPLITS

MAX_SHARD_BYTES = 2**31  # the writer holds this much per group, and as much again while it joins a shard
NUM_THREADS = 8  # that read kept shards; hashing releases the interpreter's lock
NO_RESULTS = frozenset({"key", "pixels"})  # of a row: other code makes other keys of the same clip
ALL_OF_ONE_SIZE = tuple(map(Group, SPLITS))
Row = Mapping[str, Any]


class Shard(NamedTuple):
    """A finished file and what it is made of.

    Attributes:
        split: of its clips.
        file: relative path.
        sha256: of its content.
        stamp: of the corpus and the models that it was encoded with.
        completed_by: the chunk that filled it; None for what was left at the end.
        rows: of all clips up to its last, also of those with a `reason` to be left out.
    """

    split: str
    file: str
    sha256: str
    stamp: str
    completed_by: int | None
    rows: list[Row]

    @property
    def good_rows(self) -> list[Row]:
        """Those of the clips that are in the file."""
        return [row for row in self.rows if is_good(row)]

    @property
    def order(self) -> tuple[bool, int, int]:
        """Shards come as they are filled, then what was left: the same whichever attempt wrote them."""
        return self.completed_by is None, self.completed_by or 0, SPLITS.index(self.split)


def is_good(row: Row) -> bool:
    """Whether a clip was encoded; else its row has the `reason` why not."""
    return "reason" not in row


class ShardWriter:
    """Collects clips group by group; writes a shard whenever it has `shard_size` clips or about `MAX_SHARD_BYTES`.

    Shards that an earlier attempt finished in the same folder are kept: their chunks need not be added again.
    """

    def __init__(self, folder: Path, shard_size: int, stamp: str, groups: Iterable[Group] = ALL_OF_ONE_SIZE) -> None:
        self.folder = folder
        self.shard_size = shard_size
        self._stamp = stamp
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        ordered = sorted(set(groups), key=lambda group: (SPLITS.index(group.split), group.name))
        self._shards = {group: list(self._kept(group)) for group in ordered}
        self._num_finished = {group: sum(len(shard.rows) for shard in self._shards[group]) for group in ordered}
        self._drop_others()
        self._pending: dict[Group, list[Row]] = {group: [] for group in ordered}
        self._tensors: dict[Group, list[Mapping[str, Tensor]]] = {group: [] for group in ordered}

    @property
    def num_clips(self) -> dict[str, int]:
        """Encoded clips of every split that has any."""
        return dict(Counter(group.split for group in self._shards for row in self._rows(group) if is_good(row)))

    @property
    def left_out(self) -> list[Row]:
        """Rows of clips that could not be encoded."""
        return [row for group in self._shards for row in self._rows(group) if not is_good(row)]

    def is_kept(self, place: Place, num_clips: int) -> bool:
        """Whether all clips of a chunk are in finished shards."""
        return place.start + num_clips <= self._num_finished[place.group]

    def add(self, place: Place, rows: Sequence[Row], tensors: Mapping[str, Tensor]) -> None:
        """Takes a chunk; those of a group come in order.

        Args:
            place: where it belongs. Clips that a kept shard ends with are left out.
            rows: manifest rows without `split`, `shard`, `row`, and with what `origins` needs; of a clip that was not
                encoded one with a `reason`.
            tensors: of the encoded clips.
        """
        group, pending = place.group, self._pending[place.group]
        known = self._num_finished[group] + len(pending) - place.start
        assert 0 <= known <= len(rows), f"{place}: of {len(rows)} clips {known} are known"
        first = sum(map(is_good, rows[:known]))
        pending.extend(rows[known:])
        if first == sum(map(is_good, rows)):
            return
        self._tensors[group].append({name: tensor[first:] for name, tensor in tensors.items()})
        clip_bytes = sum(tensor[0].nbytes for tensor in tensors.values())
        size = min(self.shard_size, max(1, MAX_SHARD_BYTES // clip_bytes))
        while sum(map(is_good, self._pending[group])) >= size:
            self._write(group, _end_of(self._pending[group], size), place.number)

    @property
    def rows(self) -> list[Row]:
        """What is known of the encoded clips, in the order of the manifest."""
        return [row for shard in self._in_order() for row in shard.good_rows]

    def close(self) -> None:
        """Writes what is left, and the manifest."""
        for group, pending in self._pending.items():
            if any(map(is_good, pending)):
                self._write(group, len(pending), None)
        aside = self.folder / ".manifest"  # the file itself may be linked into an artifact of an earlier attempt
        with aside.open("w", encoding="utf-8") as manifest:
            for shard in self._in_order():
                for index, row in enumerate(shard.good_rows):
                    line = {"id": row["id"], "split": shard.split, "shard": shard.file, "row": index, **row}
                    result = {name: value for name, value in line.items() if name not in NO_RESULTS}
                    manifest.write(json.dumps(result) + "\n")  # in ASCII: nothing in a caption or name can end a line
        aside.replace(self.folder / MANIFEST_FILE)

    def deliver(self, out: Path) -> None:
        """Puts shards and manifest into an artifact; the folder stays as it is."""
        (out / "shards").mkdir()
        for file in (*(shard.file for shard in self._in_order()), MANIFEST_FILE):
            link_or_copy(str(self.folder / file), str(out / file))

    def _in_order(self) -> list[Shard]:
        return sorted((shard for shards in self._shards.values() for shard in shards), key=lambda shard: shard.order)

    def _rows(self, group: Group) -> Iterator[Row]:
        yield from (row for shard in self._shards[group] for row in shard.rows)
        yield from self._pending[group]

    def _write(self, group: Group, num_rows: int, completed_by: int | None) -> None:
        rows, self._pending[group] = self._pending[group][:num_rows], self._pending[group][num_rows:]
        count, parts = sum(map(is_good, rows)), self._tensors[group]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        rest = {name: tensor[count:] for name, tensor in joined.items()}
        self._tensors[group] = [rest] if any(map(len, rest.values())) else []
        file = f"shards/{group.name}-{len(self._shards[group]):05d}.safetensors"
        aside = self.folder / ".shard"
        save_file({name: tensor[:count].contiguous() for name, tensor in joined.items()}, aside)
        shard = Shard(group.split, file, digest_file(aside), self._stamp, completed_by, rows)
        aside.replace(self.folder / file)
        write_record(self._record(file), shard._asdict())
        self._shards[group].append(shard)
        self._num_finished[group] += len(rows)

    def _record(self, file: str) -> Path:
        return self.folder / "records" / f"{Path(file).stem}.json"

    def _kept(self, group: Group) -> Iterator[Shard]:
        """Shards of a group from the first up to the one that is missing, altered or of other clips."""
        shards = read_shards(self.folder, group)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for number, (shard, is_mine) in enumerate(zip(shards, pool.map(self._is_mine, shards), strict=True)):
                if not (shard and is_mine and shard.file == f"shards/{group.name}-{number:05d}.safetensors"):
                    return
                yield shard

    def _is_mine(self, shard: Shard | None) -> bool:
        return shard is not None and shard.stamp == self._stamp and is_intact(self.folder, shard)

    def _drop_others(self) -> None:
        kept = {shard.file for shards in self._shards.values() for shard in shards}
        for path in (self.folder / "shards").iterdir():
            if f"shards/{path.name}" not in kept:
                self._record(path.name).unlink(missing_ok=True)
                path.unlink()


def read_shards(folder: Path, group: Group | None = None) -> list[Shard | None]:
    """The records of finished shards, of one group or all, in order; None for one torn or of another version."""
    files = f"{group.name}-*.json" if group else "*.json"
    records = map(read_record, sorted((folder / "records").glob(files)))
    return [Shard(**values) if values and values.keys() == set(Shard._fields) else None for values in records]


def is_intact(folder: Path, shard: Shard) -> bool:
    """Whether a shard's file still has the content that was written."""
    path = folder / shard.file
    return path.is_file() and digest_file(path) == shard.sha256


def _end_of(rows: Sequence[Row], num_good: int) -> int:
    """How many rows there are up to the last of so many good ones."""
    good = [number for number, row in enumerate(rows, 1) if is_good(row)]
    return good[num_good - 1]
