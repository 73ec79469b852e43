"""Prepares the corpus with Ray Data: turns source clips into latents and embeddings on disk.

Videos are decoded twice: to find the bad ones and count windows, and to encode them. Never are all pixels in memory or
on disk at once, so that a corpus may be far larger than the machine.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.exceptions
from safetensors.torch import load

from magic141.artifacts.fingerprint import CodeStamp
from magic141.cluster.address import ray_cluster
from magic141.cluster.session import ensure_ray, require_room
from magic141.data.config import DataConfig
from magic141.data.description import describe
from magic141.data.fitted import Fitted, fit_models
from magic141.data.info import INFO_FILE
from magic141.data.kept import ProbeRecords
from magic141.data.shards import ShardWriter, is_good
from magic141.data.sources.chunks import Chunk, place_chunks, stamp_of
from magic141.data.sources.clips import Clip, Probed, Windows, cut_windows, make_chunks, sample_shapes
from magic141.data.sources.listing import BadFile, Listing, VideoFile, list_videos
from magic141.data.sources.splits import SPLITS
from magic141.data.videos.decoding import StorageError
from magic141.data.workers import Encode, Probe, Render
from magic141.errors import UserError, first_line
from magic141.stage_log import StageLog

PROBE_BLOCK_VIDEOS = 16  # that one task decodes; what it has found is kept when it ends
RESTARTS = {"max_restarts": 8, "max_task_retries": 2}  # of a GPU's worker: the others need not load models again
# so small that workers of many runs, which stay until they have encoded all, leave a cluster CPUs to decode on; with
# whole ones, runs that start together could take them all, and wait for each other for ever
ENCODER_CPUS = 0.01
MAX_LOSSES = 3  # times in a row that workers are lost on the way to one chunk: then it is the chunk that kills them
NUM_RETRIES = 3  # of a task whose process died; Ray Data's own number is without end


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
        UserError: for an unusable source or, with on_bad_file fail, any bad file: those that cannot be decoded before
            anything is encoded, those of which only some part cannot be read when it is needed.
    """
    out, run_dir = out.resolve(), run_dir.resolve()
    config = config.model_copy(update={"path": config.path.resolve() if config.path else None})
    listing = list_videos(config.path) if config.source == "folder" and config.path else None
    _start_ray(config)
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
    if listing is None or config.path is None:
        return Windows(sample_shapes(config, seed), None, []), []
    records = ProbeRecords(run_dir / "probe")
    probed = _probe(config.path, listing.videos, config, records, log)
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
    with log.progress(len(videos), "video") as advance, _users_mistakes():
        advance(len(videos) - len(missing))
        with records.kept_anyhow():
            for video, result in zip(missing, _probe_results(folder, missing, config), strict=True):
                records.add(video.file, result["reason"] or [int(result["num_frames"]), result["digest"]])
                advance(1)
    found = ((video.file, records.found[video.file]) for video in videos)
    return [BadFile(file, result) if isinstance(result, str) else Probed(*result) for file, result in found]


def _probe_results(folder: Path, videos: Sequence[VideoFile], config: DataConfig) -> Iterator[dict[str, Any]]:
    """The rows of `Probe`, in order, as its tasks end."""
    if not videos:
        return
    all_cpus = 4 * int(ray.cluster_resources().get("CPU", 1))  # a few blocks for each: videos differ in length
    num_blocks = max(-(-len(videos) // PROBE_BLOCK_VIDEOS), min(len(videos), all_cpus))
    rows = ray.data.from_items([video._asdict() for video in videos], override_num_blocks=num_blocks)
    num_done = 0
    try:
        for row in rows.map(Probe(folder, config, _workers_code()), max_retries=NUM_RETRIES).iter_rows():
            yield row
            num_done += 1
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise UserError(
            f"data.path = {folder}: processes that read {videos[num_done].file}, or one of the next "
            f"{PROBE_BLOCK_VIDEOS}, died ({type(error).__name__}): remove it, or give them more memory"
        ) from error


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
    with log.progress(len(clips), "clip") as advance, _users_mistakes():
        advance(num_kept)
        for row in _encoded_anyhow(missing, config, fitted.folder, log):
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


def _encoded_anyhow(
    chunks: Sequence[Chunk], config: DataConfig, models: Path, log: StageLog
) -> Iterator[dict[str, Any]]:
    """`_encoded_chunks`, begun again behind the last one where a worker is lost, with its memory or its machine."""
    num_done, num_losses = 0, 0
    while num_done < len(chunks):
        try:
            for row in _encoded_chunks(chunks[num_done:], config, models):
                yield row
                num_done, num_losses = num_done + 1, 0
        except ray.exceptions.RayError as error:
            num_losses += 1
            if isinstance(error, ray.exceptions.RayTaskError):  # the worker's own
                raise
            if num_losses == MAX_LOSSES:
                raise UserError(
                    f"workers that encode {chunks[num_done].clips[0].source} died {num_losses} times in a row "
                    f"({type(error).__name__}): give them more memory, or leave that video out"
                ) from error
            log.note(f"an encoding worker was lost ({type(error).__name__}): goes on with new ones")
            _start_ray(config)  # again, if it was a local Ray that died, and all workers with it


def _encoded_chunks(chunks: Sequence[Chunk], config: DataConfig, models: Path) -> Iterator[dict[str, Any]]:
    """The rows of `Encode`, a chunk each, in order: decoding tasks stream into encoding actors on Ray Data."""
    items = [{"number": chunk.place.number, "clips": chunk.json} for chunk in chunks]
    spare_cpus = int(ray.cluster_resources().get("CPU", 2)) - 1  # decoding keeps one busy
    wanted = min(config.num_workers, len(chunks))
    there = max(1, min(wanted, spare_cpus))
    pool = {"min_size": there, "max_size": wanted} if ray_cluster() else {"size": there}  # a cluster may still grow
    use_gpu = config.num_gpus_per_worker > 0
    # On CPUs: no restarts by Ray, which announces them with a false alarm; `_encoded_anyhow` replaces lost workers.
    placement = {"num_gpus": config.num_gpus_per_worker} | RESTARTS if use_gpu else {"max_restarts": 0}
    code = _workers_code()
    rendered = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Render(config, code), num_cpus=1, max_retries=NUM_RETRIES
    )
    with warnings.catch_warnings():  # restarts have no named parameters yet; Ray is pinned below 2.61
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        encoded = rendered.map(
            Encode,
            fn_constructor_args=(models, use_gpu, code),
            compute=ray.data.ActorPoolStrategy(**pool),
            num_cpus=ENCODER_CPUS,
            **placement,
        )
    yield from encoded.iter_rows()


def _start_ray(config: DataConfig) -> None:
    """Starts Ray with ordered results (the same corpus gives the same bytes) and workers' errors passed on as such."""
    ensure_ray()
    require_room("data.num_workers", config.num_workers, {"num_gpus_per_worker": config.num_gpus_per_worker})
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True


def _workers_code() -> CodeStamp:
    return CodeStamp.of([Probe.__module__])


@contextmanager
def _users_mistakes() -> Iterator[None]:
    """Re-raises a worker's UserError or StorageError with its own line only, without what Ray adds to it."""
    try:
        yield
    except (UserError, StorageError) as error:  # Ray makes its error a subclass of the worker's
        kind = UserError if isinstance(error, UserError) else StorageError
        raise kind(first_line(str(getattr(error, "cause", error)))) from None
