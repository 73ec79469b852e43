"""Prepares the corpus with Ray Data: turns source clips into latents and embeddings on disk.

Videos are decoded twice: to find the bad ones and count windows, and to encode them. Never are all pixels in memory or
on disk at once, so that a corpus may be far larger than the machine.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import ray
import ray.data
import torch
from safetensors.torch import load, save_file

from magic141.artifacts import StageLog, digest_folder
from magic141.data.clips import (
    BadFile,
    Clip,
    Listing,
    VideoFile,
    cut_windows,
    list_videos,
    make_chunks,
    render_chunk,
    sample_shapes,
)
from magic141.data.config import DataConfig
from magic141.data.dataset import INFO_FILE, NULL_TEXT_FILE, BadFileInfo, ClipDataset, DatasetInfo
from magic141.data.shards import ShardWriter
from magic141.data.sheets import comparison_sheet, contact_sheet
from magic141.data.splits import SPLITS
from magic141.data.video import Frames
from magic141.data.workers import Encode, Probe, Render, parse_clips
from magic141.fingerprint import CodeStamp
from magic141.frozen import UserError
from magic141.models.device import sampling_device
from magic141.models.encoders import Encoders
from magic141.models.text_embedding import TextEmbedding
from magic141.models.tiny_encoders import words_of
from magic141.models.vae import CausalPCACodec, VideoCodec, load_codec
from magic141.ray_address import ray_cluster
from magic141.raysession import ensure_ray, require_room

NUM_QUALITY_CLIPS = 64
NUM_SHEET_CLIPS = 6


def prepare_dataset(config: DataConfig, out: Path, log: StageLog, seed: int) -> None:
    """Writes the prepared corpus into the empty folder `out`.

    Args:
        config: Source, geometry, codec and encoders.
        out: Becomes the artifact: dataset.json, manifest.jsonl, shards/, null_text.safetensors, codec/, encoders/.
        log: Receives progress, notes on skipped files, contact sheets and metrics.
        seed: Seed of the drawn clips, of the choice of clips to fit the codec on, and of the tiny encoders.

    Raises:
        UserError: for an unusable source or, with on_bad_file fail, any bad file; before anything is encoded.
    """
    out = out.resolve()
    config = config.model_copy(update={"path": config.path.resolve() if config.path else None})
    listing = list_videos(config.path) if config.source == "folder" and config.path else None
    _start_ray(config)
    clips, bad_files = _list_clips(config, listing, log, seed)
    _require_clips(clips, bad_files, config)
    sample = _sample_frames(clips, config, seed)
    codec = _make_codec(sample, config)
    codec.save(out / "codec")
    encoders = Encoders.fit([clip.caption for clip in clips], config.encoder, seed, torch.from_numpy(sample[:, 0]))
    encoders.save(out / "encoders")
    _note_long_captions(clips, config, log)
    num_clips = _encode(clips, config, out, log)
    null_text = encoders.encode_text([""])
    save_file(
        {"text_tokens": null_text.tokens, "text_mask": null_text.mask, "pooled": null_text.pooled},
        out / NULL_TEXT_FILE,
    )
    info = _describe(config, out, codec, null_text, num_clips, bad_files, log)
    (out / INFO_FILE).write_text(info.model_dump_json(indent=2) + "\n")
    counts: dict[str, float | int | str] = {f"num_{split}_clips": num_clips[split] for split in SPLITS}
    log.summary({**counts, "num_bad_files": len(bad_files), "codec_psnr_db": info.codec_psnr_db})


def _list_clips(
    config: DataConfig, listing: Listing | None, log: StageLog, seed: int
) -> tuple[list[Clip], list[BadFile]]:
    """All clips to encode, and all files that cannot be used."""
    if listing is None or config.path is None:
        return sample_shapes(config, seed), []
    probed = _probe(config.path, listing.videos, config) if listing.videos else []
    bad = [*listing.bad_files, *(result for result in probed if isinstance(result, BadFile))]
    _handle_bad_files(bad, config, log)
    usable = [(video, count) for video, count in zip(listing.videos, probed, strict=True) if isinstance(count, int)]
    windows = cut_windows([video for video, _ in usable], [count for _, count in usable], config)
    for note in windows.notes:
        log.note(note)
    return windows.clips, bad


def _probe(folder: Path, videos: Sequence[VideoFile], config: DataConfig) -> list[int | BadFile]:
    """Decodes every video once, in parallel; in the order of `videos`."""
    rows = [video._asdict() for video in videos]
    probe = Probe(folder, config, _workers_code())
    with _users_mistakes():
        results = ray.data.from_items(rows, override_num_blocks=min(len(rows), 64)).map(probe).take_all()
    return [
        BadFile(video.file, result["reason"]) if result["reason"] else int(result["num_frames"])
        for video, result in zip(videos, results, strict=True)
    ]


def _handle_bad_files(bad: Sequence[BadFile], config: DataConfig, log: StageLog) -> None:
    if bad and config.on_bad_file == "fail":
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(
            f"data.path = {config.path}: {bad[0].file}: {bad[0].reason}{more}; repair or remove it, "
            "or set data.on_bad_file=skip"
        )
    for file, reason in bad:
        log.note(f"skipped {file}: {reason}")


def _require_clips(clips: Sequence[Clip], bad_files: Sequence[BadFile], config: DataConfig) -> None:
    """Raises UserError if a split has no clip."""
    missing = [split for split in SPLITS if not any(clip.split == split for clip in clips)]
    if not missing:
        return
    skipped = "; ".join(f"{file}: {reason}" for file, reason in bad_files[:3]) or "none"
    raise UserError(
        f"data.path = {config.path}: {len(clips)} usable clips of {config.num_frames} frames at {config.fps:g} fps, "
        f"none for {', '.join(missing)}; expected at least one for each of {', '.join(SPLITS)}; "
        f"add or repair videos (skipped: {skipped})"
    )


def _sample_frames(clips: Sequence[Clip], config: DataConfig, seed: int) -> Frames:
    """Pixels of randomly chosen training clips, uint8 [N, F, H, W, 3], to fit on."""
    train = [clip for clip in clips if clip.split == "train"]
    count = min(len(train), config.codec.num_fit_clips if config.codec.kind == "pca" else NUM_SHEET_CLIPS)
    chosen = np.sort(np.random.default_rng([seed, len(SPLITS)]).permutation(len(train))[:count])
    chunks = make_chunks([train[index] for index in chosen], config)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(lambda chunk: render_chunk(chunk, config), chunks)))


def _make_codec(sample: Frames, config: DataConfig) -> VideoCodec:
    """Fits the causal PCA, or loads HunyuanVideo's VAE."""
    if config.codec.kind == "pca":
        return VideoCodec(CausalPCACodec.fit(torch.from_numpy(sample), config.codec))
    codec = load_codec(Path(config.codec.path or "") / "vae")
    codec.vae.register_to_config(_name_or_path="")  # the artifact must not depend on where the VAE came from
    return codec


def _note_long_captions(clips: Sequence[Clip], config: DataConfig, log: StageLog) -> None:
    if config.encoder.kind != "tiny":
        return
    room = config.encoder.max_text_tokens - 1  # the end-of-text token takes one
    captions = {clip.caption for clip in clips}
    longer = [caption for caption in captions if len(words_of(caption)) > room]
    if longer:
        longest = max(len(words_of(caption)) for caption in longer)
        log.note(
            f"{len(longer)} of {len(captions)} captions are cut after {room} words and punctuation marks: "
            f"raise data.encoder.max_text_tokens to {longest + 1} to keep them whole"
        )


def _encode(clips: Sequence[Clip], config: DataConfig, out: Path, log: StageLog) -> dict[str, int]:
    """Renders and encodes all clips and writes the shards; returns clips per split."""
    writer = ShardWriter(out, config.shard_size)
    with log.progress(len(clips), "clip") as advance, _users_mistakes():
        for row in _encoded_chunks(clips, config, out).iter_rows():
            chunk, ids = parse_clips(row["clips"]), json.loads(row["ids"])
            rows = [
                {"id": name, "caption": c.caption, "source": c.source, "start_frame": c.start_frame, "truth": c.truth}
                for name, c in zip(ids, chunk, strict=True)
            ]
            writer.add(chunk[0].split, rows, load(row["tensors"]))
            advance(len(chunk))
    writer.close()
    return writer.num_clips


def _encoded_chunks(clips: Sequence[Clip], config: DataConfig, out: Path) -> ray.data.Dataset:
    """The lazy Ray Data pipeline: decoding tasks stream into encoding actors; a row is a chunk of clips."""
    chunks = make_chunks(clips, config)
    items = [{"clips": json.dumps([clip.to_dict() for clip in chunk])} for chunk in chunks]
    spare_cpus = int(ray.cluster_resources().get("CPU", 2)) - 1  # decoding needs one, or nothing proceeds
    wanted = min(config.num_workers, len(chunks))
    there = max(1, min(wanted, spare_cpus))
    pool = {"min_size": there, "max_size": wanted} if ray_cluster() else {"size": there}  # a cluster may still grow
    use_gpu = config.num_gpus_per_worker > 0
    # On CPUs no restarts, which also keeps Ray Data from fusing decoding and encoding into one actor
    placement = {"num_gpus": config.num_gpus_per_worker} if use_gpu else {"max_restarts": 0}
    code = _workers_code()
    rendered = ray.data.from_items(items, override_num_blocks=len(items)).map(Render(config, code), num_cpus=1)
    with warnings.catch_warnings():  # max_restarts has no named parameter yet; Ray is pinned below 2.61
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        return rendered.map(
            Encode,
            fn_constructor_args=(out, use_gpu, code),
            compute=ray.data.ActorPoolStrategy(**pool),
            num_cpus=1,
            **placement,
        )


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
    """Re-raises a worker's UserError with its own line only, without the traceback and advice that Ray adds."""
    try:
        yield
    except UserError as error:  # Ray makes its error a subclass of the worker's
        raise UserError(str(getattr(error, "cause", error)).partition("\n")[0]) from None


def _describe(
    config: DataConfig,
    out: Path,
    codec: VideoCodec,
    null_text: TextEmbedding,
    num_clips: dict[str, int],
    bad_files: Sequence[BadFile],
    log: StageLog,
) -> DatasetInfo:
    """Reads the held-out split back, measures the codec's PSNR on it and shows some of its clips."""
    heldout = ClipDataset.open(out, "heldout")
    channels, length, height, width = heldout.latents.shape[1:]
    return DatasetInfo(
        num_clips=num_clips,
        source=config.source,
        fps=config.fps,
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
        latent_shape=(channels, length, height, width),
        num_text_tokens=null_text.tokens.shape[1],
        num_image_tokens=heldout.image_tokens.shape[1],
        text_width=null_text.tokens.shape[2],
        pooled_width=null_text.pooled.shape[1],
        temporal_factor=codec.temporal_factor,
        spatial_factor=codec.spatial_factor,
        codec_version=digest_folder(out / "codec")[:16],
        encoder_version=digest_folder(out / "encoders")[:16],
        has_ground_truth=config.source == "shapes",
        bad_files=tuple(BadFileInfo(file=file, reason=reason) for file, reason in bad_files),
        codec_psnr_db=_judge_codec(heldout, codec, log),
    )


def _judge_codec(heldout: ClipDataset, codec: VideoCodec, log: StageLog) -> float:
    """PSNR in dB of held-out clips after encoding and decoding; also logs pictures of both."""
    assert heldout.frames is not None
    count = NUM_QUALITY_CLIPS if isinstance(codec.vae, CausalPCACodec) else 2
    shown = torch.linspace(0, len(heldout) - 1, min(count, len(heldout))).long()
    original = heldout.frames[shown].numpy()
    codec.to(sampling_device())
    decoded = codec.decode_video(heldout.latents[shown]).cpu().numpy()
    log.image("clips", contact_sheet(original[:NUM_SHEET_CLIPS]))
    log.image("reconstruction", comparison_sheet(original[:NUM_SHEET_CLIPS], decoded[:NUM_SHEET_CLIPS]))
    error = np.square(original.astype(np.float32) - decoded.astype(np.float32)).mean()
    return round(float(10 * np.log10(255.0**2 / max(float(error), 1e-3))), 3)
