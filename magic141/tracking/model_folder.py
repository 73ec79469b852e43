"""Writes the two files that let MLflow load an exported folder: MLmodel and requirements.txt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.pyfunc import add_to_model
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

import magic141

_ANY_TIME = "1970-01-01 00:00:00.000000"  # so that equal folders have equal digests; the run has the time
_SIGNATURE = ModelSignature(
    Schema(
        [
            ColSpec(DataType.binary, "image"),
            ColSpec(DataType.string, "prompt"),
            # Any, because pandas turns integers beside a missing value into floats, and MLflow takes neither for the
            # other: the model checks these two itself.
            ColSpec(AnyType(), "seconds", required=False),
            ColSpec(AnyType(), "seed", required=False),
        ]
    ),
    Schema([ColSpec(DataType.string, "video")]),
)


def write_model_files(folder: Path, loader_module: str, options: Mapping[str, Any]) -> None:
    """Describes `folder` to MLflow; `options` are the loader's, and can be overridden when the model is loaded."""
    model = Model(signature=_SIGNATURE, utc_time_created=_ANY_TIME, model_uuid=None)
    add_to_model(model, loader_module=loader_module, model_config=dict(options))
    model.save(folder / MLMODEL_FILE_NAME)
    requirements = (f"magic141=={magic141.__version__}", f"mlflow=={mlflow.__version__}")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
