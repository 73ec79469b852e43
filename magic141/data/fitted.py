"""The codec and the encoders of a corpus: fitted or opened before any clip is encoded, and kept for later attempts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from magic141.artifacts.digests import digest_folder
from magic141.artifacts.file_records import record_path
from magic141.artifacts.publication import link_or_copy, written_aside
from magic141.cluster.room import usable_cpus
from magic141.data.config import DataConfig
from magic141.data.dataset import NULL_TEXT_FILE, load_null_text
from magic141.data.kept import read_record, write_record
from magic141.data.sources.clips import Clip, make_chunks
from magic141.data.sources.splits import SPLITS
from magic141.data.videos.pixels import Frames
from magic141.data.workers import render_good
from magic141.errors import UserError
from magic141.models.caption_lengths import remarks_on_cut_captions
from magic141.models.encoders import Encoders
from magic141.models.text_embedding import TextEmbedding
from magic141.models.vae import CausalPCACodec, VideoCodec, load_codec
from magic141.stage_log import StageLog

MAX_FIT_BYTES = 2**28  # of pixels: fitting takes nine times as much memory, and larger clips have more patches each
NUM_CALIBRATION_CLIPS = 6  # whose first frames the encoders are calibrated on, where no codec needs more clips


@dataclass(frozen=True)
class Fitted:
    """What clips are encoded with.

    Attributes:
        folder: codec/, encoders/ and null_text.safetensors, as they are in the artifact.
        digest: of what decides a clip's encoding: codec and encoders.
        codec: on the CPU.
        null_text: the empty prompt's embedding, one row.
    """

    folder: Path
    digest: str
    codec: VideoCodec
    null_text: TextEmbedding

    def deliver(self, out: Path) -> None:
        """Puts them into an artifact; links into a checkpoint stay links."""
        shutil.copytree(self.folder, out, symlinks=True, copy_function=link_or_copy, dirs_exist_ok=True)


def fit_models(clips: Sequence[Clip], config: DataConfig, run_dir: Path, log: StageLog, seed: int) -> Fitted:
    """Fits or opens codec and encoders, or takes those of an earlier attempt: a second fit may differ in a last bit.

    Raises:
        UserError: a checkpoint is not what was expected, or none of the clips to fit on can be read.
    """
    for remark in remarks_on_cut_captions([clip.caption for clip in clips], config.encoder):
        log.note(remark)
    folder, record = run_dir / "models", run_dir / "models.json"
    paths = [config.codec.path, config.encoder.path]  # the folder holds links into them, and they may move
    digest = _digest(folder) if folder.is_dir() else ""
    if read_record(record) != {"digest": digest, "paths": paths}:
        with written_aside(folder) as aside:
            _save(clips, config, aside, seed)
        write_record(record, {"digest": _digest(folder), "paths": paths})
    encoding = _digest(folder, {NULL_TEXT_FILE})  # encoded on this machine: on others it may differ in last bits
    return Fitted(folder, encoding, load_codec(folder / "codec"), load_null_text(folder))


def _digest(folder: Path, volatile: Iterable[str] = ()) -> str:
    """The digest of the folder; the files of large models are not read again for the second one."""
    return digest_folder(folder, volatile, record_path(folder))


def _save(clips: Sequence[Clip], config: DataConfig, folder: Path, seed: int) -> None:
    """Writes the models. The empty prompt is encoded here: encoders that do not run are found before hours of work."""
    sample = _sample_frames(clips, config, seed)
    _make_codec(sample, config).save(folder / "codec")
    encoders = Encoders.fit([clip.caption for clip in clips], config.encoder, seed, torch.from_numpy(sample[:, 0]))
    encoders.save(folder / "encoders")
    null_text = encoders.encode_text([""])
    if not (null_text.tokens.isfinite().all() and null_text.pooled.isfinite().all()):
        raise UserError(
            f"data.encoder.path = {config.encoder.path}: encodes the empty prompt to numbers that are not finite; "
            "expected encoders that work; put the right weights there"
        )
    tensors = {"text_tokens": null_text.tokens, "text_mask": null_text.mask, "pooled": null_text.pooled}
    save_file(tensors, folder / NULL_TEXT_FILE)
    del encoders
    torch.cuda.empty_cache()  # the encoding workers need the GPU


def _sample_frames(clips: Sequence[Clip], config: DataConfig, seed: int) -> Frames:
    """Pixels of randomly chosen training clips, uint8 [N, F, H, W, 3], to fit on, in the main size."""
    train = [clip for clip in clips if clip.split == "train"]
    count = min(len(train), config.codec.num_fit_clips if config.codec.kind == "pca" else NUM_CALIBRATION_CLIPS)
    count = min(count, max(2, MAX_FIT_BYTES // config.clip_bytes(config.size)))
    chosen = np.sort(np.random.default_rng([seed, len(SPLITS)]).permutation(len(train))[:count])
    chunks = make_chunks([replace(train[index], more_size=None) for index in chosen], config)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        rendered = list(pool.map(lambda chunk: render_good(chunk, config), chunks))
    frames = np.concatenate([part.frames for part in rendered])
    if not len(frames):
        raise UserError(
            f"data.path = {config.path}: {chunks[0][0].source}: {rendered[0].reasons[0]}, and so on for all "
            f"{len(chosen)} clips to fit on; expected videos that can be read; repair or remove them"
        )
    return frames


def _make_codec(sample: Frames, config: DataConfig) -> VideoCodec:
    """Fits the causal PCA, or loads HunyuanVideo's VAE."""
    if config.codec.kind == "pca":
        return VideoCodec(CausalPCACodec.fit(torch.from_numpy(sample), config.codec))
    codec = load_codec(Path(config.codec.path or "") / "vae")
    codec.vae.register_to_config(_name_or_path="")  # the artifact must not depend on where the VAE came from
    return codec
