"""Base class of all configs: frozen, typed, and rejecting unknown fields."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

BY_CONTENT = "(by its content)"
_UNLESS_A_NAME = "by its content, unless it is a name"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # `Path` collapses `//`; at least two letters, as C:/ is a drive
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
MOST_STEPS = 10**9  # of a training: months, even at a hundred a second
NAMES_ONLY = ("name", "workspace", "experiment")  # of the pipeline's config: they decide no result
MAX_NAME_CHARS = 250  # the name of a run in MLflow is not longer


class FrozenConfig(BaseModel):
    """A config that cannot change after validation and rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _on_top_of_defaults(cls, values: Any) -> Any:
        """Completes a section given in part from its field's default, which may differ from its class's default."""
        if not isinstance(values, Mapping):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: _on_top(defaults.get(name), value) for name, value in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Rejects `num_steps=true`, which pydantic would accept as 1."""
        if _has_bool(value) and not _may_be_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("true and false are not allowed here; expected another kind of value, such as a number")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _whole_paths(cls, value: Any, info: ValidationInfo) -> Any:
        """Makes a source's path absolute, so that processes in other folders find the same files."""
        is_path = isinstance(value, str | Path) and _names_source(cls.model_fields[str(info.field_name)], value)
        if is_path and is_address(value):  # it would become a folder `s3:` of the current one
            raise ValueError("an address, expected a path on this machine; mount it or copy it here")
        return os.path.abspath(os.path.expanduser(value)) if is_path else value


def names_file(text: str | Path) -> bool:
    """Whether a value of a `source_or_name` is a path: a name has no slash."""
    return os.sep in str(text)


def is_address(path: str | Path) -> bool:
    """Whether a path is really an address, such as s3://bucket: as a path, it would be a folder `s3:`."""
    return bool(_URL.match(str(path)))


def _on_one_line(name: str) -> str:
    if not name.strip() or len(name) > MAX_NAME_CHARS or _CONTROL.search(name):
        raise ValueError(f"expected a string of 1 to {MAX_NAME_CHARS} characters on one line, not only blanks")
    return name


Name = Annotated[str, AfterValidator(_on_one_line)]  # of something that MLflow keeps


def _has_bool(value: Any) -> bool:
    return any(map(_has_bool, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def _may_be_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_may_be_bool, get_args(annotation)))


def _on_top(default: Any, value: Any) -> Any:
    """`value`, completed from `default` if both are sections."""
    if not (isinstance(default, FrozenConfig) and isinstance(value, Mapping)):
        return value
    fields = {name: getattr(default, name) for name in type(default).model_fields}
    return fields | {name: _on_top(fields.get(name), part) for name, part in value.items()}


def placement(default: Any, **kwargs: Any) -> Any:
    """A field that determines where or how verbosely work runs, not what it computes: left out of a stage's key."""
    return Field(default, json_schema_extra={"in_key": False}, **kwargs)


def source_path(**kwargs: Any) -> Any:
    """A field with the path of the user's files: a stage's key depends on their content, not on the path."""
    return Field(None, json_schema_extra={"in_key": BY_CONTENT}, **kwargs)


def source_or_name(**kwargs: Any) -> Any:
    """A field with the path of the user's file, as `source_path`, or with a name, which counts as any value does."""
    return Field(None, json_schema_extra={"in_key": _UNLESS_A_NAME}, **kwargs)


def key_fields(config: BaseModel) -> dict[str, Any]:
    """The fields of `config` that determine its result, as plain JSON values.

    `placement` fields are left out. A source's path counts only as set or not: its digest is a source of the stage.
    """
    fields: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if value is not None and _names_source(info, value):
            fields[name] = BY_CONTENT
        elif _in_key(info) is not False:
            fields[name] = key_fields(value) if isinstance(value, BaseModel) else config.model_dump(mode="json")[name]
    return fields


def determines_result(config: type[BaseModel], field: str) -> bool:
    """Whether `section.field` of a config determines its result; true of a field that the config does not have."""
    name, _, rest = field.partition(".")
    info = config.model_fields.get(name)
    if info is None or _in_key(info) is False:
        return info is None
    kinds = (info.annotation, *get_args(info.annotation))
    section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return section is None or determines_result(section, rest)


def _names_source(field: FieldInfo, value: Any) -> bool:
    """Whether a field's value is the path of the user's files."""
    in_key = _in_key(field)
    return in_key == BY_CONTENT or (in_key == _UNLESS_A_NAME and names_file(value))


def _in_key(field: FieldInfo) -> object:
    extra = field.json_schema_extra
    return extra.get("in_key", True) if isinstance(extra, dict) else True
