"""The pipeline's config: a YAML file that may extend another, with `--set a.b=c` overrides, validated at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from magic141.config.bases import misfits
from magic141.config.checks import problems
from magic141.config.errors import validated
from magic141.config.files import read_config, with_settings
from magic141.data.config import DataConfig
from magic141.environment import temporary_environment
from magic141.errors import UserError
from magic141.evaluation.config import EvaluateConfig, GenerateConfig, PublishConfig, QuantizeConfig, ReportConfig
from magic141.frozen import FrozenConfig, Name, is_address, names_file, placement
from magic141.models.config import TransformerConfig
from magic141.retrieval.config import ClipConfig, IndexConfig
from magic141.training.config import CfgDistillationConfig, FlowMatchingConfig
from magic141.training.dmd2.config import Dmd2Config

HOME_VARIABLE = "MAGIC141_HOME"
CLIP_WEIGHTS = "train_clip.pretrained"  # a file; everything else of the user's that a config names is a folder
LARGEST_SEED = 2**31 - 1  # FAISS takes a C int; `step_generator` mixes larger ones into numbers that wrap around


class PipelineConfig(FrozenConfig):
    """The configs of all stages, and where the run is kept."""

    name: Name = Field("magic141", description="name of the parent run")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of every stage")
    workspace: Path = placement(Path("runs"), description="folder of artifacts, checkpoints and the tracking store")
    experiment: Name = placement("magic141", description="MLflow experiment")
    data: DataConfig = DataConfig()
    model: TransformerConfig = TransformerConfig()
    train_clip: ClipConfig = ClipConfig()
    build_index: IndexConfig = IndexConfig()
    pretrain_t2v: FlowMatchingConfig = FlowMatchingConfig()
    pretrain_i2v: FlowMatchingConfig = FlowMatchingConfig()
    distill_cfg: CfgDistillationConfig = CfgDistillationConfig()
    distill_dmd2: Dmd2Config = Dmd2Config()
    quantize: QuantizeConfig = QuantizeConfig()
    generate: GenerateConfig = GenerateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    publish: PublishConfig = PublishConfig()

    @field_validator("workspace", mode="before")
    @classmethod
    def _a_folder(cls, workspace: Any) -> Any:
        if isinstance(workspace, str | Path) and is_address(workspace):
            raise ValueError("an address, expected a folder on this machine; mount it")
        if isinstance(workspace, str) and not workspace.strip():  # as a path, it would be the current folder
            raise ValueError("empty, expected a folder")
        return workspace

    @model_validator(mode="after")
    def _stages_fit(self) -> PipelineConfig:
        if found := problems(self):
            raise ValueError("\n".join(found))
        return self

    @property
    def temporal_factor(self) -> int:
        """Pixel frames per latent frame after the first."""
        return self.data.codec.sizes.temporal_factor

    @property
    def home(self) -> Path:
        """The workspace as an absolute path; MAGIC141_HOME overrides the config.

        Raises:
            UserError: if it is an address, or begins with the home of a user that there is not.
        """
        return workspace_folder(os.environ.get(HOME_VARIABLE) or self.workspace)


def workspace_folder(named: str | Path) -> Path:
    """A workspace as an absolute path.

    Raises:
        UserError: if it is an address, or begins with the home of a user that there is not.
    """
    if is_address(named):
        raise UserError(f"workspace {named}: an address, expected a folder on this machine; mount it, or use another")
    try:
        return Path(named).expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"workspace {named}: {error}; set {HOME_VARIABLE} or workspace to a folder") from None


def working_in(home: Path) -> AbstractContextManager[None]:
    """Inside, `home` is the workspace of every config, whatever environment or config say."""
    return temporary_environment({HOME_VARIABLE: str(workspace_folder(home))})


def default_home() -> Path:
    """The workspace of commands without a config: MAGIC141_HOME, or `runs` in the working directory."""
    return PipelineConfig.model_construct(workspace=Path("runs")).home


def load_config(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Reads a YAML config and everything that it extends, applies `a.b=c` overrides, and validates.

    Raises:
        UserError: one line per problem.
    """
    return validate(with_settings(read_config(path), overrides), path.name)


def validate(values: Mapping[str, Any], source: str) -> PipelineConfig:
    """A config from plain values; `source` is named in error messages."""
    try:
        return validated(PipelineConfig, values, source)
    except RecursionError:
        raise UserError(f"{source}: nested too deeply, or in itself; correct it, see configs/demo.yaml") from None


def validate_stored(values: Mapping[str, Any], source: str) -> PipelineConfig:
    """A config from the record of a run; fields that this version no longer has are left out."""
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        gone = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    kept = copy.deepcopy(dict(values))
    for *sections, field in gone:
        holder: Any = kept
        for section in sections:
            holder = holder[section]
        del holder[field]
    return validate(kept, source)


def with_overrides(config: PipelineConfig, overrides: Sequence[str], source: str) -> PipelineConfig:
    """A copy of `config` with `a.b=c` overrides applied."""
    return validate(with_settings(config.model_dump(mode="json"), overrides), source)


def to_yaml(config: PipelineConfig) -> str:
    """The complete config, defaults included, in a form that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def named_sources(config: PipelineConfig) -> dict[str, Path]:
    """Field -> file or folder of the user's that the config has in use."""
    data, clip = config.data, config.train_clip
    named: dict[str, str | Path | None] = {
        "data.path": data.folder,
        "data.codec.path": data.codec.path if data.codec.kind == "hunyuan" else None,
        "data.encoder.path": data.encoder.path if data.encoder.kind == "hunyuan" else None,
        "pretrain_t2v.base": config.pretrain_t2v.base,
        "pretrain_i2v.base": config.pretrain_i2v.base,
        CLIP_WEIGHTS: clip.pretrained if clip.kind == "pretrained" and names_file(clip.pretrained or "") else None,
    }
    return {field: Path(value) for field, value in named.items() if value is not None}


def missing_sources(config: PipelineConfig) -> Iterator[str]:
    """Yields a line for every file or folder that the config names but that is missing, and for every misfit base."""
    for field, path in named_sources(config).items():
        if field == CLIP_WEIGHTS:
            if not path.is_file():
                yield f"{field} = {path}: no such file; point --set {field}=FILE to it"
        elif not path.is_dir():
            kind = "not a folder" if path.exists() else "no such folder"
            yield f"{field} = {path}: {kind}; create it, or point --set {field}=DIR to the right place"
    yield from misfits(config)
