"""What a prepared corpus is: sizes, bad files, and how well its codec keeps the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from magic141.data.config import DataConfig
from magic141.data.dataset import ClipDataset
from magic141.data.fitted import Fitted
from magic141.data.info import BadFileInfo, DatasetInfo
from magic141.data.psnr import psnr_db
from magic141.data.sources.listing import BadFile
from magic141.data.sources.splits import HeldOut
from magic141.data.videos.sheets import comparison_sheet, contact_sheet
from magic141.models.device import sampling_device
from magic141.models.vae import CausalPCACodec, VideoCodec
from magic141.stage_log import StageLog

NUM_QUALITY_CLIPS = 64
NUM_VAE_QUALITY_CLIPS = 2  # a VAE decodes slowly
NUM_SHEET_CLIPS = 6
MIN_CODEC_ERROR = 1e-3 / 255**2  # nothing decodes better: 78 dB


def describe(
    config: DataConfig,
    out: Path,
    fitted: Fitted,
    num_clips: dict[str, int],
    heldout: HeldOut | None,
    bad_files: Sequence[BadFile],
    log: StageLog,
) -> DatasetInfo:
    """Reads the held-out split back, measures the codec's PSNR on it and shows some of its clips."""
    clips = ClipDataset.open(out, "heldout")
    codec, null_text = fitted.codec, fitted.null_text
    channels, length, height, width = clips.latents.shape[1:]
    return DatasetInfo(
        num_clips=num_clips,
        source=config.source,
        fps=config.fps,
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
        latent_shape=(channels, length, height, width),
        text_width=null_text.tokens.shape[2],
        pooled_width=null_text.pooled.shape[1],
        temporal_factor=codec.temporal_factor,
        has_ground_truth=config.source == "shapes",
        bad_files=tuple(BadFileInfo(file=file, reason=reason) for file, reason in bad_files),
        codec_psnr_db=_judge_codec(clips, codec, log),
        heldout=heldout,
        more_sizes=config.more_sizes,
        num_of_size=_show_sizes(config, out, log),
    )


def _show_sizes(config: DataConfig, out: Path, log: StageLog) -> dict[str, int]:
    """Counts the training clips of each size and shows first frames of some; nothing if there is but one size."""
    if not config.more_sizes:
        return {}
    train = ClipDataset.open(out, "train")
    found = train.by_size
    for size, rows in found.items():
        spread = rows[torch.linspace(0, len(rows) - 1, min(len(rows), NUM_SHEET_CLIPS)).long()]
        log.image(f"training_clips_{size}", contact_sheet(train.first_frame[spread][None].numpy()))
    log.summary({f"num_train_clips_{size}": len(rows) for size, rows in found.items()})
    if unused := [str(size) for size in config.more_sizes if size not in found]:
        log.note(f"no training video has a shape near to {', '.join(unused)}: the model is not trained on that size")
    return {str(size): len(rows) for size, rows in found.items()}


def _judge_codec(heldout: ClipDataset, codec: VideoCodec, log: StageLog) -> float:
    """PSNR in dB of held-out clips after encoding and decoding; also logs pictures of both."""
    count = NUM_QUALITY_CLIPS if isinstance(codec.vae, CausalPCACodec) else NUM_VAE_QUALITY_CLIPS
    shown = torch.linspace(0, len(heldout) - 1, min(count, len(heldout))).long()
    original = heldout.pixels[shown].numpy()
    codec.to(sampling_device())
    decoded = codec.decode_video(heldout.latents[shown]).cpu().numpy()
    log.image("clips", contact_sheet(original[:NUM_SHEET_CLIPS]))
    log.image("reconstruction", comparison_sheet(original[:NUM_SHEET_CLIPS], decoded[:NUM_SHEET_CLIPS]))
    error = float(np.square(original.astype(np.float32) - decoded.astype(np.float32)).mean())
    return round(float(psnr_db(error / 255**2, MIN_CODEC_ERROR)), 3)
