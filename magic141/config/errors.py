"""Explains validation errors of a config, one line each: field, value, what was expected, remedy."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from magic141.errors import UserError

Config = TypeVar("Config", bound=BaseModel)


def validated(model: type[Config], values: Mapping[str, Any], source: str = "") -> Config:
    """A config from plain values.

    Args:
        model: its class.
        values: its fields.
        source: the file that they came from, named in the remedy; empty if only `--set` gives them.

    Raises:
        UserError: one line per problem.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = (_line(details, model, source) for details in error.errors())
        raise UserError("\n".join(dict.fromkeys(lines))) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean …?', or the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"


def _line(details: ErrorDetails, model: type[BaseModel], source: str) -> str:
    path = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        owner = _model_at(model, details["loc"][:-1])
        section = path.rpartition(".")[0] or source
        where = f" in '{section}'" if section else ""
        hint = nearest(str(details["loc"][-1]), owner.model_fields)
        return f"{path} = {_show(details['input'])}: unknown field{where}; {hint}"
    if details["type"] == "invalid_key":
        return _no_name(details, model, source)
    option = _option(details["loc"])
    remedy = "change it " + " or ".join([f"in {source}"] * bool(source) + [f"with {option}"] * bool(option))
    if details["type"] == "value_error":
        message = str(details.get("ctx", {}).get("error", details["msg"]))
        if isinstance(details["input"], Mapping | BaseModel):  # concerns several fields of a section
            return message if not path or message.startswith(path) else f"{path}.{message}"
        return f"{path} = {_show(details['input'])}: {message}; {remedy}"
    if details["type"] == "model_type":
        if details["input"] is None and isinstance(details["loc"][-1], str):
            return f"{path}: empty, expected fields; remove the line from {source} to take the defaults"
        return f"{path} = {_show(details['input'])}: expected a section of fields; change it in {source}"
    if details["type"] == "missing":
        return f"{path}: not set, but required; set it in {source} or with {option}"
    return f"{path} = {_show(details['input'])}: {_expected(details)}{_meaning(model, details['loc'])}; {remedy}"


def _expected(details: ErrorDetails) -> str:
    """Pydantic's message, without its names of Python's types."""
    limits = details.get("ctx", {})
    lists = {
        "path_type": "expected a path",
        "tuple_type": "expected a list in brackets, such as [4, 1]",
        "named_tuple_type": "expected a list in brackets, such as [4, 1]",
        "too_short": f"expected {limits.get('min_length')} or more values in brackets",
        "too_long": f"expected {limits.get('max_length')} or fewer values in brackets",
    }
    message = lists.get(details["type"], details["msg"])
    return message.replace("Input should be", "expected").replace("String should", "expected to")


def _option(loc: tuple[int | str, ...]) -> str:
    """The option that changes what `loc` names: of a list, `--set` only replaces the whole."""
    keys = ".".join(map(str, itertools.takewhile(lambda part: isinstance(part, str), loc)))
    is_item = any(isinstance(part, int) for part in loc)
    return f"--set {keys}={'[…], the whole list' if is_item else 'VALUE'}" if keys else ""


def _no_name(details: ErrorDetails, model: type[BaseModel], source: str) -> str:
    """YAML reads ~, 1 and yes as other things than strings, and only a string can name a field."""
    section = ".".join(str(part) for part in details["loc"][:-1])
    known = ", ".join(sorted(_model_at(model, details["loc"][:-1]).model_fields))
    name = _show(details["input"])
    return f"{section or source}: {name} is not a field name, expected a string; rename it in {source}; known: {known}"


def _show(value: object) -> str:
    text = repr(value) if isinstance(value, str | float) else json.dumps(value, default=str)
    return text if len(text) < 60 else text[:57] + "..."


def _meaning(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    names = [part for part in loc if isinstance(part, str)]
    owner = _model_at(model, tuple(names[:-1]))
    field = owner.model_fields.get(names[-1]) if names else None
    return f" ({field.description})" if field and field.description else ""


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    for name in (part for part in loc if isinstance(part, str)):  # the others are places in a list
        field = model.model_fields.get(name)
        inner = _inner_model(field.annotation) if field else None
        if inner is None:
            return model
        model = inner
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is, may be, or is a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner_model, get_args(annotation))), None)
