"""The pretraining stages: train by flow matching, or use a finished model as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from magic141.errors import UserError
from magic141.stage_log import StageLog
from magic141.training.config import METRICS_FILE, RECORD_FILE, FlowMatchingConfig
from magic141.training.flow_matching import FlowMatchingSpec, load_base
from magic141.training.train import num_parameters, train


def pretrain(spec: FlowMatchingSpec, out: Path, log: StageLog, seed: int, run_dir: Path) -> None:
    """Pretrains T2V or I2V by flow matching, from scratch or a base.

    With num_steps = 0 the base is used as it is; without one, there is no T2V model.
    """
    if spec.config.num_steps:
        train(spec, spec.config, spec.data, out, log, seed, run_dir)
    elif spec.config.base:
        take_base(spec.config, out, log)
    else:
        log.note("left out: pretrain_i2v starts from a base of its own")
        _record(out, log)


def take_base(config: FlowMatchingConfig, out: Path, log: StageLog) -> None:
    """Fills the artifact with the base model, without training; a guidance-distilled base is fixed at one w.

    Raises:
        UserError: if the base is not a diffusers transformer folder.
    """
    assert config.base is not None
    if not (Path(config.base) / "config.json").is_file():
        raise UserError(f"base = {config.base}: expected a diffusers transformer folder with config.json")
    known = json.loads((Path(config.base) / "config.json").read_text())
    if known.get("image_condition_type"):
        log.note(
            f"{config.base} is taken as it is, which is right for a model of this pipeline only: HunyuanVideo's own "
            "image-to-video weights know other conditions; train them on with num_steps and data.encoder."
            "image_token_stride=2"
        )
    if known.get("guidance_embeds"):
        load_base(config.base, config.base_guidance_scale).save_pretrained(out / "transformer")
    else:
        shutil.copytree(config.base, out / "transformer")
    _record(out, log, num_parameters=num_parameters(out / "transformer"))


def _record(out: Path, log: StageLog, **facts: int) -> None:
    """Writes the records of a training that took no steps."""
    record = {"steps": 0, **facts}
    (out / METRICS_FILE).touch()
    (out / RECORD_FILE).write_text(json.dumps(record, indent=1))
    log.summary(record)
