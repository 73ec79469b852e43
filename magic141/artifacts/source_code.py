"""The code of a source file without comments, docstrings and layout: its digest, and what it imports.

Parsing all of the package takes half a second, so what was found is kept where Python keeps the file's bytecode, and
used for as long as the file's content is the same. It can be deleted at any time.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from contextlib import suppress
from functools import lru_cache
from importlib.util import cache_from_source
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from magic141.artifacts.digests import sha256_text
from magic141.text_files import replace_text


class Code(NamedTuple):
    """Digest of a file's code, and the names that it imports: modules, or things in modules."""

    digest: str
    imports: tuple[str, ...]


class Record(NamedTuple):
    """What was found in a file; the key is of the file's content, and of this module."""

    key: str
    code: Code


RECORD = TypeAdapter(Record)


def code_of(path: Path) -> Code:
    """The code of a file as it is now."""
    return _code_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _code_of(path: Path, _modified_ns: int) -> Code:
    """Reads a file once for as long as it is not changed."""
    content = path.read_bytes()
    if path.suffix != ".py":
        return Code(_sha256(content), ())
    key, file = _sha256(_reader() + content), Path(cache_from_source(str(path))).with_suffix(".code.json")
    known = _read(file)
    if known is not None and known.key == key:
        return known.code
    code = parse(content)
    _write(file, Record(key, code))
    return code


@lru_cache(maxsize=1)
def _reader() -> bytes:
    """This file: what it finds depends on it."""
    return Path(__file__).read_bytes()


def _read(file: Path) -> Record | None:
    """The record; None if it is missing, damaged or of another format."""
    try:
        return RECORD.validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def _write(file: Path, record: Record) -> None:
    if sys.dont_write_bytecode:
        return
    with suppress(OSError):  # an installation that is not this user's is parsed by every process
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, RECORD.dump_json(record).decode())


def parse(source: bytes) -> Code:
    """The code of a source text."""
    tree = ast.parse(source)
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
        _drop_what_only_newer_pythons_write(node)
    return Code(sha256_text(_dump(tree)), tuple(sorted(imported)))


def _dump(tree: ast.Module) -> str:
    """The same text on every Python: from 3.13 on, empty lists are left out unless they are asked for."""
    if sys.version_info >= (3, 13):
        return ast.dump(tree, show_empty=True)
    return ast.dump(tree)


def _drop_what_only_newer_pythons_write(node: ast.AST) -> None:
    """Python 3.12's lists of no type parameters and empty ends of f-strings: one code, one digest, as on 3.11."""
    if getattr(node, "type_params", None) == []:
        del node.type_params  # type: ignore[attr-defined]
    if isinstance(node, ast.JoinedStr):
        node.values = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
