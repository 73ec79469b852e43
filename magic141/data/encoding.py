"""Encodes a corpus' clips: all that neither an earlier attempt nor an earlier corpus has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load
from torch import Tensor

from magic141.artifacts.digests import sha256_text
from magic141.data.config import DataConfig
from magic141.data.earlier import Earlier, Encoded, KnownClips, stacked
from magic141.data.fitted import Fitted
from magic141.data.origins import CHANGED, ClipKeys
from magic141.data.ray_launch import encoded_with_restarts, plain_user_errors
from magic141.data.shards import ShardWriter, is_good
from magic141.data.sources.chunks import Chunk, place_chunks, stamp_of
from magic141.data.sources.clips import Clip, make_chunks
from magic141.data.sources.listing import BadFile
from magic141.errors import UserError
from magic141.stage_log import StageLog

ID_CHARS = 32
Row = dict[str, Any]


def encode_clips(
    clips: Sequence[Clip], key_of: ClipKeys, fitted: Fitted, run_dir: Path, earlier: Earlier, log: StageLog
) -> ShardWriter:
    """Renders and encodes clips, and writes the shards.

    Raises:
        UserError: a clip cannot be read or encoded, and on_bad_file is fail.
    """
    config = key_of.config
    chunks = place_chunks(make_chunks(clips, config))
    groups = {chunk.place.group for chunk in chunks}
    writer = ShardWriter(run_dir, config.shard_size, stamp_of(chunks, fitted.digest), groups)
    missing = [chunk for chunk in chunks if not writer.is_kept(chunk.place, len(chunk.clips))]
    num_kept = len(clips) - sum(len(chunk.clips) for chunk in missing)
    if num_kept:
        log.note(f"{num_kept} of {len(clips)} clips were encoded by an earlier attempt")
    with log.progress(len(clips), "clip") as advance, plain_user_errors():
        advance(num_kept)
        for chunk, rows, tensors in _encoded(missing, key_of, fitted, earlier, log):
            refuse_bad_files([BadFile(row["source"], row["reason"]) for row in rows if not is_good(row)], config)
            writer.add(chunk.place, rows, tensors)
            advance(len(rows))
    writer.close()
    return writer


def refuse_bad_files(bad: Sequence[BadFile], config: DataConfig) -> None:
    """Raises UserError if there are bad files and none may be skipped."""
    if bad and config.on_bad_file == "fail":
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(
            f"data.path = {config.path}: {bad[0].file}: {bad[0].reason}{more}; repair or remove it, "
            "or set data.on_bad_file=skip"
        )


class Work(NamedTuple):
    """A chunk, the keys of its clips, and what an earlier corpus has of them; None if it lacks any."""

    chunk: Chunk
    keys: list[str]
    known: list[Encoded] | None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to encode, captions included."""
        known, clips = self.known or (), self.chunk.clips
        return [clip.caption for clip in known] == [clip.caption for clip in clips]


def _encoded(
    chunks: Sequence[Chunk], key_of: ClipKeys, fitted: Fitted, earlier: Earlier, log: StageLog
) -> Iterator[tuple[Chunk, list[Row], dict[str, Tensor]]]:
    """Rows and tensors of each chunk: copied from an earlier corpus, or encoded, or both if only captions are new."""
    keys = [[key_of(clip) for clip in chunk.clips] for chunk in chunks]
    clips = (clip for chunk in chunks for clip in chunk.clips)
    wanted = list(zip(clips, chain.from_iterable(keys), strict=True))
    known = map(KnownClips(earlier, wanted).look_up, chunks, keys)
    works = [Work(*parts) for parts in zip(chunks, keys, known, strict=True)]
    _note_known(works, log)
    new = [work.chunk._replace(text_only=work.known is not None) for work in works if not work.is_done]
    encoded = encoded_with_restarts(new, key_of.config, fitted.folder, log)
    for work in works:
        rows, tensors = _result(work, None if work.is_done else next(encoded))
        if work.known is None and not key_of.hold_for(work.chunk.clips[0].source):
            rows = [{**row, "key": CHANGED} for row in rows]
        yield work.chunk, rows, tensors


def _note_known(works: Sequence[Work], log: StageLog) -> None:
    known = [work for work in works if work.known]
    if known:
        num_recaptioned = _num_clips(work for work in known if not work.is_done)
        new = f", {num_recaptioned} of them with new captions" if num_recaptioned else ""
        count = f"{_num_clips(known)} of {_num_clips(works)}"
        log.note(f"{count} clips are copied from an earlier corpus, which encoded them alike{new}")


def _num_clips(works: Iterable[Work]) -> int:
    return sum(len(work.chunk.clips) for work in works)


def _result(work: Work, made: Mapping[str, Any] | None) -> tuple[list[Row], dict[str, Tensor]]:
    """A chunk's rows of the manifest, and the tensors of those of its clips that are in any."""
    clips = work.chunk.clips
    reasons = json.loads(made["reasons"]) if made else [""] * len(clips)
    tensors = load(made["tensors"]) if made else {}
    if work.known is None:
        pixels = json.loads(made["pixels"]) if made else []
    else:
        pixels = [clip.pixels for clip in work.known]
        good = [clip for clip, reason in zip(work.known, reasons, strict=True) if not reason]
        tensors = (stacked(good, clips[0].split) if good else {}) | tensors
    rows = zip(clips, work.keys, pixels, reasons, strict=True)
    return [_row(*row) for row in rows], tensors


def _row(clip: Clip, key: str, pixels: str, reason: str) -> Row:
    """What the manifest says of a clip, with its key and the digest of its pixels, or why it is left out."""
    taken_from = {"source": clip.source, "start_frame": clip.start_frame}
    if reason:
        return {**taken_from, "reason": reason}
    named = {"id": clip_id(pixels, clip.caption), "caption": clip.caption}
    return {**named, **taken_from, "truth": clip.truth, "key": key, "pixels": pixels}


def clip_id(pixels: str, caption: str) -> str:
    """A clip's id in the manifest, from the digest of its pixels and its caption: one video may have two captions."""
    return sha256_text(f"{pixels} {caption}")[:ID_CHARS]
