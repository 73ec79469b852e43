"""The four training stages: what each trains, from what, and what it leaves in its artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from magic141.artifacts import StageLog
from magic141.data.dataset import load_info
from magic141.frozen import UserError
from magic141.models.config import TransformerConfig
from magic141.training.cfg_distillation import CfgDistillationSpec
from magic141.training.collapse import WATCH_FILE
from magic141.training.config import CfgDistillationConfig, FlowMatchingConfig, TrainConfig
from magic141.training.dmd2 import Dmd2Spec
from magic141.training.dmd2_config import Dmd2Config
from magic141.training.flow_matching import FlowMatchingSpec, load_base
from magic141.training.launch import launch
from magic141.training.objective import ObjectiveSpec


def pretrain_t2v(
    config: FlowMatchingConfig, model: TransformerConfig, data: Path, out: Path, log: StageLog, seed: int, run_dir: Path
) -> None:
    """Text to video by flow matching, from scratch or from `config.base`; with no steps, the base as it is."""
    if config.num_steps == 0:
        take_base(config, out, log)
        return
    train(FlowMatchingSpec(config, model, data, t2v=None), config, data, out, log, seed, run_dir)


def pretrain_i2v(
    config: FlowMatchingConfig,
    model: TransformerConfig,
    data: Path,
    t2v: Path,
    out: Path,
    log: StageLog,
    seed: int,
    run_dir: Path,
) -> None:
    """Image to video from the T2V model by the 2C+1 surgery: the teacher; with no steps, the base as it is."""
    if config.num_steps == 0:
        take_base(config, out, log)
        return
    spec = FlowMatchingSpec(config, model, data, t2v / "transformer")
    train(spec, config, data, out, log, seed, run_dir)


def distill_cfg(
    config: CfgDistillationConfig,
    model: TransformerConfig,
    data: Path,
    teacher: Path,
    out: Path,
    log: StageLog,
    seed: int,
    run_dir: Path,
) -> None:
    """One evaluation with w as input in place of the teacher's two."""
    spec = CfgDistillationSpec(config, model, data, teacher / "transformer")
    train(spec, config, data, out, log, seed, run_dir)


def distill_dmd2(
    config: Dmd2Config,
    model: TransformerConfig,
    data: Path,
    teacher: Path,
    student: Path,
    out: Path,
    log: StageLog,
    seed: int,
    run_dir: Path,
) -> None:
    """Few steps in place of many: the generator starts from `student`, the CFG-distilled model."""
    spec = Dmd2Spec(config, model, data, teacher / "transformer", student / "transformer")
    train(spec, config, data, out, log, seed, run_dir)


def train(
    spec: ObjectiveSpec, config: TrainConfig, data: Path, out: Path, log: StageLog, seed: int, run_dir: Path
) -> None:
    """Runs an objective to its end, resuming what `run_dir` holds, and fills the artifact.

    Raises:
        UserError: if the data holds fewer training clips than a batch.
    """
    num_clips = load_info(data).num_clips["train"]
    if num_clips < config.batch_size:
        raise UserError(
            f"batch_size = {config.batch_size}: the data has only {num_clips} training clips; use a smaller batch, "
            "or more or longer videos, or a smaller data.stride_frames"
        )
    result = launch(spec, config, run_dir, log, seed)
    shutil.copytree(result.export, out, dirs_exist_ok=True)
    shutil.copy2(result.metrics_file, out / "metrics.jsonl")
    record: dict[str, float | int | str] = {
        "steps": config.num_steps,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "peak_memory_mb": result.peak_memory_mb,
        "num_parameters": num_parameters(out / "transformer"),
        "engine": config.placement.engine,
        "num_workers": config.placement.num_workers,
        "resumed_from_step": result.resumed_from_step or 0,
    }
    if (out / WATCH_FILE).is_file():
        watched = json.loads((out / WATCH_FILE).read_text())
        record |= {"best_step": watched["best_step"] or 0, "collapsed": int(watched["collapsed"])}
    (out / "training.json").write_text(json.dumps(record, indent=1))
    log.summary(record)


def take_base(config: FlowMatchingConfig, out: Path, log: StageLog) -> None:
    """Fills the artifact with the base model, without training; a guidance-distilled one at its fixed w.

    Raises:
        UserError: if the base is not a diffusers transformer folder.
    """
    assert config.base is not None
    if not (Path(config.base) / "config.json").is_file():
        raise UserError(f"base = {config.base}: expected a diffusers transformer folder with config.json")
    if json.loads((Path(config.base) / "config.json").read_text()).get("guidance_embeds"):
        load_base(config.base, config.base_guidance_scale).save_pretrained(out / "transformer")
    else:
        shutil.copytree(config.base, out / "transformer")
    (out / "metrics.jsonl").touch()
    record: dict[str, float | int | str] = {"steps": 0, "num_parameters": num_parameters(out / "transformer")}
    (out / "training.json").write_text(json.dumps(record, indent=1))
    log.summary(record)


def num_parameters(folder: Path) -> int:
    """Parameters of the exported transformer, counted from the file headers without loading the weights."""
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is not iterable)
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total
