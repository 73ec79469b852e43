"""Reads what a user writes: config files with everything they extend, and values of `--set`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from magic141.errors import UserError, shortened

# What YAML's constructors let through, apart from their own errors: for `0x_`, `!!bool x`, `!!timestamp x`, a 30th
# of February, a time before the year 1.
_UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
MAX_SHOWN_CHARS = 60


def read_config(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a config file on top of those that it extends; `seen` are the files that extend it.

    Raises:
        UserError: one line that names the file.
    """
    place, text = _text_of(path, seen)
    if place in seen:
        raise UserError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}; remove one `extends`")
    values = load_yaml(text, f"config {path}", "correct that line")
    if not isinstance(values, dict):
        kind = "nothing" if values is None else type(values).__name__
        raise UserError(f"config {path}: expected fields with values, got {kind}; see configs/demo.yaml")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str) or not base.isprintable():
        raise UserError(f"{path}: extends = {base!r}: expected one file name, relative to this file")
    return merge(read_config(path.parent / base, (*seen, place)), values)


def parse_override(text: str, example: str) -> dict[str, Any]:
    """The nested values of one `a.b=c`; `example` is one, for the error."""
    path, equals, value = text.partition("=")
    names = [name.strip() for name in path.split(".")]
    where = f"--set {shown(text)}"
    if not equals or not all(names):
        raise UserError(f"{where}: expected FIELD=VALUE, such as --set {example}")
    parsed = load_yaml(value, where, "correct the value, or put a string in quotes")
    for name in reversed(names):
        parsed = {name: parsed}
    return dict(parsed)


def with_settings(
    values: Mapping[str, Any], settings: Iterable[str], example: str = "distill_dmd2.num_steps=100"
) -> dict[str, Any]:
    """`values` with those of `a.b=c` texts over them; `example` is such a text, for an error."""
    return functools.reduce(merge, (parse_override(text, example) for text in settings), dict(values))


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `top` over it, section by section."""
    merged = dict(base)
    for name, value in top.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def load_yaml(text: str, where: str, remedy: str) -> Any:
    """Plain values from YAML.

    Args:
        text: what the user wrote.
        where: the file or option that it stands in, with which an error begins.
        remedy: how an error ends.

    Raises:
        UserError: one line, with YAML's line number where it tells one.
    """
    try:
        return yaml.load(text, _Values)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply; correct it, see configs/demo.yaml") from None
    except (yaml.YAMLError, *_UNREADABLE) as error:
        raise UserError(f"{where}: not YAML ({_told(error)}); {remedy}") from None


def _told(error: Exception) -> str:
    """What YAML has to say of a mistake, and where in the text; its own words name the file `<unicode string>`."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    places = ((error.problem, error.problem_mark), (error.context, error.context_mark))
    return ", ".join(_placed(what, mark) for what, mark in places if what)


def _placed(what: str, mark: yaml.Mark | None) -> str:
    what = " ".join(what.split())
    if mark is None:
        return what
    line = (mark.get_snippet(indent=0) or "").partition("\n")[0].strip()
    return f"{what} in line {mark.line + 1}, column {mark.column + 1}{f': {line}' if line else ''}"


def shown(text: str) -> str:
    """What the user typed, as one line of bounded length."""
    return shortened(" ".join(text.split()), MAX_SHOWN_CHARS)


def _text_of(path: Path, seen: tuple[Path, ...]) -> tuple[Path, str]:
    """Where a config file, which the last of `seen` extends, is without symbolic links, and its text."""
    try:
        return path.resolve(), path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"beside it: {', '.join(beside)}" if beside else "give a YAML file, such as configs/demo.yaml"
        whose = f", but {seen[-1]} extends it" if seen else ""
        raise UserError(f"config {path}: no such file{whose}; {hint}") from None
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a symbolic link to itself
        raise UserError(f"config {path}: cannot be read ({error}); give the path of a YAML file") from None


class _Values(yaml.SafeLoader):
    """A SafeLoader that also refuses, with the line: aliases inside what they refer to, duplicate keys, bad values."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: set[str] = set()  # anchors of the collections around the current node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise _marked(f"the alias *{event.anchor} stands inside the collection that it refers to", event.start_mark)
        return super().compose_node(parent, index)

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        with self._inside(anchor):
            return super().compose_sequence_node(anchor)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        with self._inside(anchor):
            node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise _marked("a list or section where a field's name is expected", key.start_mark)
            if key.value in seen:
                raise _marked(f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            str(value)  # an integer of thousands of digits could not be shown in an error either
            return value
        except _UNREADABLE as error:
            raise _marked(str(error), node.start_mark) from None

    @contextmanager
    def _inside(self, anchor: str | None) -> Iterator[None]:
        self._open |= {anchor} if anchor else set()
        yield
        self._open -= {anchor} if anchor else set()


def _marked(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
