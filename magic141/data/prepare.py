"""Prepares the corpus: turns source clips into latents and embeddings on disk.

Videos are decoded twice: to find the bad ones and count windows, and to encode them. The pixels are never all in memory
or on disk at once, so that a corpus may be far larger than the machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load

from magic141.data.config import DataConfig
from magic141.data.description import describe
from magic141.data.fitted import Fitted, fit_models
from magic141.data.info import INFO_FILE
from magic141.data.kept import ProbeRecords
from magic141.data.ray_launch import encoded_with_restarts, plain_user_errors, probe_results, start_ray
from magic141.data.shards import ShardWriter, is_good
from magic141.data.sources.chunks import place_chunks, stamp_of
from magic141.data.sources.clips import Clip, Probed, Windows, cut_windows, make_chunks, sample_shapes
from magic141.data.sources.listing import BadFile, Listing, VideoFile, list_videos
from magic141.data.sources.splits import SPLITS
from magic141.errors import UserError
from magic141.stage_log import StageLog


def prepare_dataset(config: DataConfig, out: Path, log: StageLog, seed: int, run_dir: Path) -> None:
    """Writes the prepared corpus into the empty folder `out`.

    Args:
        config: Source, geometry, codec and encoders.
        out: Becomes the artifact: dataset.json, manifest.jsonl, shards/, null_text.safetensors, codec/, encoders/.
        log: Receives progress, notes on skipped files, contact sheets and metrics.
        seed: Seed of the drawn clips, of the choice of clips to fit the codec on, and of the tiny encoders.
        run_dir: Survives a crash: what was probed, the models and the finished shards, which a later call with the
            same settings takes over. Its result is that of a call that was not disturbed.

    Raises:
        UserError: for an unusable source or, with on_bad_file fail, for any bad file: before anything is encoded if it
            cannot be decoded, later if only a part of it cannot be read.
    """
    out, run_dir = out.resolve(), run_dir.resolve()
    config = config.model_copy(update={"path": config.folder.resolve() if config.folder else None})
    listing = list_videos(config.folder) if config.folder else None
    start_ray(config)
    windows, bad_files = _list_clips(config, listing, run_dir, log, seed)
    clips = windows.clips
    _require_clips(Counter(clip.split for clip in clips), bad_files, config)
    fitted = fit_models(clips, config, run_dir, log, seed)
    writer = _encode(clips, config, fitted, run_dir, log)
    bad_files += _note_left_out(writer, log)
    _require_clips(writer.num_clips, bad_files, config)
    fitted.deliver(out)
    writer.deliver(out)
    info = describe(config, out, fitted, writer.num_clips, windows.heldout, bad_files, log)
    (out / INFO_FILE).write_text(info.model_dump_json(indent=2, exclude_none=True) + "\n")
    counts: dict[str, float | int | str] = {f"num_{split}_clips": info.num_clips[split] for split in SPLITS}
    if windows.heldout:
        counts["heldout"] = windows.heldout
    log.summary({**counts, "num_bad_files": len(bad_files), "codec_psnr_db": info.codec_psnr_db})


def _list_clips(
    config: DataConfig, listing: Listing | None, run_dir: Path, log: StageLog, seed: int
) -> tuple[Windows, list[BadFile]]:
    """All clips to encode, and all files that cannot be used."""
    if listing is None or config.folder is None:
        return Windows(sample_shapes(config, seed), None, []), []
    records = ProbeRecords(run_dir / "probe")
    probed = _probe(config.folder, listing.videos, config, records, log)
    bad = [*listing.bad_files, *(result for result in probed if isinstance(result, BadFile))]
    _handle_bad_files(bad, config, log)
    records.settle()
    usable = [(video, found) for video, found in zip(listing.videos, probed, strict=True) if isinstance(found, Probed)]
    windows = cut_windows([video for video, _ in usable], [found for _, found in usable], config)
    for note in windows.notes:
        log.note(note)
    return windows, bad


def _probe(
    folder: Path, videos: Sequence[VideoFile], config: DataConfig, records: ProbeRecords, log: StageLog
) -> list[Probed | BadFile]:
    """Decodes every video once, in parallel, unless an earlier attempt has; in the order of `videos`."""
    missing = [video for video in videos if video.file not in records.found]
    with log.progress(len(videos), "video") as advance, plain_user_errors():
        advance(len(videos) - len(missing))
        with records.flushed_at_the_end():
            for video, result in zip(missing, probe_results(folder, missing, config), strict=True):
                records.add(video.file, result["reason"] or [int(result["num_frames"]), result["digest"]])
                advance(1)
    found = ((video.file, records.found[video.file]) for video in videos)
    return [BadFile(file, result) if isinstance(result, str) else Probed(*result) for file, result in found]


def _handle_bad_files(bad: Sequence[BadFile], config: DataConfig, log: StageLog) -> None:
    if bad and config.on_bad_file == "fail":
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(
            f"data.path = {config.path}: {bad[0].file}: {bad[0].reason}{more}; repair or remove it, "
            "or set data.on_bad_file=skip"
        )
    for file, reason in bad:
        log.note(f"skipped {file}: {reason}")


def _require_clips(num_clips: Mapping[str, int], bad_files: Sequence[BadFile], config: DataConfig) -> None:
    """Raises UserError if a split has no clip."""
    missing = [split for split in SPLITS if not num_clips.get(split)]
    if not missing:
        return
    skipped = "; ".join(f"{file}: {reason}" for file, reason in bad_files[:3]) or "none"
    raise UserError(
        f"data.path = {config.path}: {sum(num_clips.values())} usable clips of {config.num_frames} frames at "
        f"{config.fps:g} fps, none for {', '.join(missing)}; expected at least one for each of {', '.join(SPLITS)}; "
        f"add or repair videos (skipped: {skipped})"
    )


def _encode(clips: Sequence[Clip], config: DataConfig, fitted: Fitted, run_dir: Path, log: StageLog) -> ShardWriter:
    """Renders and encodes all clips that no earlier attempt has, and writes the shards."""
    chunks = place_chunks(make_chunks(clips, config))
    writer = ShardWriter(run_dir, config.shard_size, stamp_of(chunks, fitted.digest))
    missing = [chunk for chunk in chunks if not writer.is_kept(chunk.place, len(chunk.clips))]
    num_kept = len(clips) - sum(len(chunk.clips) for chunk in missing)
    if num_kept:
        log.note(f"{num_kept} of {len(clips)} clips were encoded by an earlier attempt")
    with log.progress(len(clips), "clip") as advance, plain_user_errors():
        advance(num_kept)
        for row in encoded_with_restarts(missing, config, fitted.folder, log):
            rows = json.loads(row["rows"])
            left_out = [BadFile(clip["source"], clip["reason"]) for clip in rows if not is_good(clip)]
            if config.on_bad_file == "fail":
                _handle_bad_files(left_out, config, log)
            writer.add(chunks[row["number"]].place, rows, load(row["tensors"]))
            advance(len(rows))
    writer.close()
    return writer


def _note_left_out(writer: ShardWriter, log: StageLog) -> list[BadFile]:
    """Files with clips that could not be read although the file could."""
    reasons: dict[str, list[str]] = {}
    for row in sorted(writer.left_out, key=lambda row: (row["source"], row["start_frame"])):
        reasons.setdefault(row["source"], []).append(row["reason"])
    bad = [BadFile(file, f"{len(found)} of its clips left out: {found[0]}") for file, found in reasons.items()]
    for file, reason in bad:
        log.note(f"{file}: {reason}")
    return bad
