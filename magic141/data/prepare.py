"""Prepares the corpus: turns source clips into latents and embeddings on disk.

Videos are decoded twice: to find the bad ones and count windows, and to encode them. The pixels are never all in memory
or on disk at once, so that a corpus may be far larger than the machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from magic141.data.config import DataConfig
from magic141.data.description import describe
from magic141.data.earlier import NOTHING_EARLIER, Earlier, as_probed, known_videos, probe_records
from magic141.data.encoding import encode_clips, refuse_bad_files
from magic141.data.fitted import fit_models
from magic141.data.info import INFO_FILE
from magic141.data.kept import ProbeRecords
from magic141.data.origins import ClipKeys, probing_key, write_origins
from magic141.data.ray_launch import plain_user_errors, probe_results, start_ray
from magic141.data.shards import ShardWriter
from magic141.data.sources.clips import Clip, Probed, cut_windows, sample_shapes
from magic141.data.sources.listing import BadFile, Listing, VideoFile, list_videos, stamp_file
from magic141.data.sources.splits import SPLITS, HeldOut
from magic141.errors import UserError
from magic141.stage_log import StageLog


class Corpus(NamedTuple):
    """All clips to encode.

    Attributes:
        clips: in order.
        heldout: by which rule some are held out; None if they are drawn apart from the others.
        videos: by their names; none in the shapes world.
        bad_files: that cannot be used.
    """

    clips: list[Clip]
    heldout: HeldOut | None
    videos: dict[str, Probed]
    bad_files: list[BadFile]


def prepare_dataset(
    config: DataConfig, out: Path, log: StageLog, seed: int, run_dir: Path, earlier: Earlier = NOTHING_EARLIER
) -> None:
    """Writes the prepared corpus into the empty folder `out`.

    Args:
        config: Source, geometry, codec and encoders.
        out: Becomes the artifact: dataset.json, manifest.jsonl, shards/, null_text.safetensors, codec/, encoders/; and
            origins.json, which is no result.
        log: Receives progress, notes on skipped files, contact sheets and metrics.
        seed: Seed of the drawn clips, of the choice of clips to fit the codec on, and of the tiny encoders.
        run_dir: Survives a crash: what was probed, the models and the finished shards, which a later call with the
            same settings takes over. Its result is that of a call that was not disturbed.
        earlier: Preparations of other corpora: what they have encoded of the same videos is copied.

    Raises:
        UserError: for an unusable source or, with on_bad_file fail, for any bad file: before anything is encoded if it
            cannot be decoded, later if only a part of it cannot be read.
    """
    out, run_dir = out.resolve(), run_dir.resolve()
    config = config.model_copy(update={"path": config.folder.resolve() if config.folder else None})
    listing = list_videos(config.folder) if config.folder else None
    start_ray(config)
    corpus = _list_clips(config, listing, run_dir, earlier, log, seed)
    clips, bad_files = corpus.clips, corpus.bad_files
    _require_clips(Counter(clip.split for clip in clips), bad_files, config)
    _require_main_size(clips, config)
    fitted = fit_models(clips, config, run_dir, log, seed)
    key_of = ClipKeys(config, earlier.code, fitted.digest, corpus.videos)
    writer = encode_clips(clips, key_of, fitted, run_dir, earlier, log)
    bad_files += _note_left_out(writer, log)
    _require_clips(writer.num_clips, bad_files, config)
    fitted.deliver(out)
    writer.deliver(out)
    write_origins(out, key_of, writer.rows)
    info = describe(config, out, fitted, writer.num_clips, corpus.heldout, bad_files, log)
    (out / INFO_FILE).write_text(info.model_dump_json(indent=2, exclude_none=True) + "\n")
    counts: dict[str, float | int | str] = {f"num_{split}_clips": info.num_clips[split] for split in SPLITS}
    if corpus.heldout:
        counts["heldout"] = corpus.heldout
    log.summary({**counts, "num_bad_files": len(bad_files), "codec_psnr_db": info.codec_psnr_db})


def _list_clips(
    config: DataConfig, listing: Listing | None, run_dir: Path, earlier: Earlier, log: StageLog, seed: int
) -> Corpus:
    """Draws the clips of the shapes world, or cuts them from videos, which are probed first."""
    if listing is None or config.folder is None:
        return Corpus(sample_shapes(config, seed), None, {}, [])
    records = probe_records(run_dir, probing_key(config, earlier.code))
    probed = _probe(config.folder, listing.videos, config, records, earlier, log)
    bad = [*listing.bad_files, *(result for result in probed if isinstance(result, BadFile))]
    refuse_bad_files(bad, config)
    for file, reason in bad:
        log.note(f"skipped {file}: {reason}")
    records.settle()
    usable = [(video, found) for video, found in zip(listing.videos, probed, strict=True) if isinstance(found, Probed)]
    windows = cut_windows([video for video, _ in usable], [found for _, found in usable], config)
    for note in windows.notes:
        log.note(note)
    return Corpus(windows.clips, windows.heldout, {video.file: found for video, found in usable}, bad)


def _probe(
    folder: Path,
    videos: Sequence[VideoFile],
    config: DataConfig,
    records: ProbeRecords,
    earlier: Earlier,
    log: StageLog,
) -> list[Probed | BadFile]:
    """Decodes every video once, in parallel, unless it was before; in the order of `videos`."""
    missing = [video for video in videos if video.file not in records.found]
    stamps = {video.file: stamp_file(folder / video.file) for video in missing}
    with log.progress(len(videos), "video") as advance, plain_user_errors():
        advance(len(videos) - len(missing))
        with records.flushed_at_the_end():
            for video, known in known_videos(earlier, folder, missing, config):
                records.add(video.file, list(known._replace(stamp=stamps[video.file])))
                advance(1)
            missing = [video for video in missing if video.file not in records.found]
            for video, result in zip(missing, probe_results(folder, missing, config), strict=True):
                frames, aspect = int(result["num_frames"]), float(result["aspect"])
                found = Probed(frames, result["digest"], stamps[video.file], aspect, json.loads(result["cuts"]))
                records.add(video.file, result["reason"] or list(found))
                advance(1)
    results = ((video.file, records.found[video.file]) for video in videos)
    return [BadFile(file, found) if isinstance(found, str) else as_probed(found) for file, found in results]


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


def _require_main_size(clips: Sequence[Clip], config: DataConfig) -> None:
    """Raises UserError if no training clip has the size in which the model is judged."""
    sizes = Counter(clip.more_size for clip in clips if clip.split == "train")
    if None not in sizes:
        found = ", ".join(f"{num} of {size}" for size, num in sizes.most_common())
        raise UserError(
            f"data.height x data.width = {config.size}: no training clip has this size, in which the model is judged "
            f"(there are {found}); expected some; make another of data.more_sizes the height and width"
        )


def _note_left_out(writer: ShardWriter, log: StageLog) -> list[BadFile]:
    """Files with clips that could not be read although the file could."""
    reasons: dict[str, list[str]] = {}
    for row in sorted(writer.left_out, key=lambda row: (row["source"], row["start_frame"])):
        reasons.setdefault(row["source"], []).append(row["reason"])
    bad = [BadFile(file, f"{len(found)} of its clips left out: {found[0]}") for file, found in reasons.items()]
    for file, reason in bad:
        log.note(f"{file}: {reason}")
    return bad
