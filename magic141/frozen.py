"""The base of every config: frozen, typed, and silent about nothing it does not know."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

BY_CONTENT = "(by its content)"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path has made one slash of two; two letters: no drive


class FrozenConfig(BaseModel):
    """A config that cannot change after validation and rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _on_top_of_defaults(cls, values: Any) -> Any:
        """A section given in part keeps the rest of its field's default, which need not be its class's default."""
        if not isinstance(values, Mapping):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: _on_top(defaults.get(name), value) for name, value in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`num_steps=true` is a slip, not one step; pydantic would take it for 1."""
        if _has_bool(value) and not _may_be_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("expected something else than true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _whole_paths(cls, value: Any, info: ValidationInfo) -> Any:
        """A source's path is absolute, so that workers and later processes in other folders find the same."""
        name = str(info.field_name)
        is_path = _in_key(cls.model_fields[name]) == BY_CONTENT and isinstance(value, str | Path)
        if is_path and _URL.match(str(value)):  # it would become a folder `s3:` of the current one
            raise ValueError("an address, expected a path on this machine; mount it or copy it here")
        return os.path.abspath(os.path.expanduser(value)) if is_path else value


def _has_bool(value: Any) -> bool:
    return any(map(_has_bool, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def _may_be_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_may_be_bool, get_args(annotation)))


def _on_top(default: Any, value: Any) -> Any:
    """`value`, completed from `default` where both are sections."""
    if not (isinstance(default, FrozenConfig) and isinstance(value, Mapping)):
        return value
    fields = {name: getattr(default, name) for name in type(default).model_fields}
    return fields | {name: _on_top(fields.get(name), part) for name, part in value.items()}


def placement(default: Any, **kwargs: Any) -> Any:
    """A field that says where or how loudly work runs, not what it computes: left out of a stage's key."""
    return Field(default, json_schema_extra={"in_key": False}, **kwargs)


def source_path(**kwargs: Any) -> Any:
    """A field that says where something of the user's lies: its content counts in a stage's key, not its place."""
    return Field(None, json_schema_extra={"in_key": BY_CONTENT}, **kwargs)


def key_fields(config: BaseModel) -> dict[str, Any]:
    """The fields of `config` that decide its result, as plain JSON values.

    `placement` fields are left out; of a `source_path` only whether there is one: its digest is a source of the stage.
    """
    fields: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        in_key = _in_key(info)
        value = getattr(config, name)
        if in_key == BY_CONTENT:
            fields[name] = None if value is None else BY_CONTENT
        elif in_key is not False:
            fields[name] = key_fields(value) if isinstance(value, BaseModel) else config.model_dump(mode="json")[name]
    return fields


def _in_key(field: FieldInfo) -> object:
    extra = field.json_schema_extra
    return extra.get("in_key", True) if isinstance(extra, dict) else True
