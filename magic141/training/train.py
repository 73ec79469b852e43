"""Trains an objective to its end and fills the stage's artifact."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from magic141.artifacts.publication import link_or_copy
from magic141.data.dataset import ClipDataset
from magic141.data.info import load_info
from magic141.errors import UserError
from magic141.stage_log import StageLog
from magic141.training.batch_sampler import BatchSampler
from magic141.training.config import METRICS_FILE, RECORD_FILE, WATCH_FILE, TrainConfig
from magic141.training.launch import TrainResult, launch
from magic141.training.objective import ObjectiveSpec


def train(
    spec: ObjectiveSpec, config: TrainConfig, data: Path, out: Path, log: StageLog, seed: int, run_dir: Path
) -> None:
    """Trains an objective to its end, resuming from `run_dir`, and fills the artifact.

    Raises:
        UserError: if the data holds fewer training clips than a batch.
    """
    info = load_info(data)
    num_clips = info.num_clips["train"]
    if num_clips < config.batch_size:
        raise UserError(
            f"batch_size = {config.batch_size}: the data has only {num_clips} training clips; use a smaller batch, "
            "or more or longer videos, or a smaller data.stride_frames"
        )
    for remark in _untrained_sizes(config, data, seed) if info.more_sizes else ():
        log.note(remark)
    result = launch(spec, config, run_dir, log, seed)
    # linked, not copied: of 13B each network is 52 GB; `run_dir` keeps its names until the artifact is published
    shutil.copytree(result.export, out, copy_function=link_or_copy, dirs_exist_ok=True)
    shutil.copy2(result.metrics_file, out / METRICS_FILE)
    record = {**_usage(config, result, out), "latent_size": info.latent_size, **_verdict(out)}
    (out / RECORD_FILE).write_text(json.dumps(record, indent=1))
    log.summary(record)


def _untrained_sizes(config: TrainConfig, data: Path, seed: int) -> list[str]:
    """Remarks on sizes that have too few clips for a batch in so short a training."""
    sizes = ClipDataset.open(data, "train").by_size
    taken = BatchSampler(list(sizes.values()), config.batch_size, seed=seed).batches_before(config.num_steps)
    return [
        f"none of the {config.num_steps} updates is on clips of {size}: there are {len(rows)}, for batches of "
        f"{config.batch_size}; train longer, or with smaller batches"
        for (size, rows), num in zip(sizes.items(), taken, strict=True)
        if not num
    ]


def _usage(config: TrainConfig, result: TrainResult, out: Path) -> dict[str, float | int | str]:
    """What the training took, and how it was placed."""
    return {
        "steps": config.num_steps,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "peak_memory_mb": result.peak_memory_mb,
        "num_parameters": num_parameters(out / "transformer"),
        "engine": config.placement.engine,
        "splitting": config.placement.splitting,
        "num_workers": config.placement.num_workers,
        "clips_per_pass": config.clips_per_pass,
        "resumed_from_step": result.resumed_from_step,
        "skipped_steps": result.num_skipped,
    }


def _verdict(out: Path) -> dict[str, int]:
    """What the objective's own watch found; empty for one without."""
    if not (out / WATCH_FILE).is_file():
        return {}
    watched = json.loads((out / WATCH_FILE).read_text())
    return {"best_step": watched["best_step"] or 0, "collapsed": int(watched["collapsed"])}


def num_parameters(folder: Path) -> int:
    """Number of parameters of the exported transformer, from the file headers, without loading the weights."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total
