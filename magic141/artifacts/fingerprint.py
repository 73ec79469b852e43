"""Fingerprints of the code that determines a result: digests of modules and what they import, without importing."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from magic141.artifacts.digests import sha256_text
from magic141.artifacts.source_code import code_of
from magic141.errors import UserError, first_few

NUM_NAMED = 5  # differing modules that a message names
_first_seen: dict[Path, str] = {}


@dataclass(frozen=True)
class CodeStamp:
    """Digests of the code behind some modules in one process; sent along with work to be compared on the worker.

    A stage key contains the driver's code: results of machines with an older installation must not be stored under it.
    """

    digests: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> CodeStamp:
        """The stamp of the modules, and of what they import from their packages, in this process."""
        return cls(tuple(module_digests(names).items()))

    def trouble(self) -> str | None:
        """How this machine's code differs, with the remedy; None if it is the same."""
        differing = _differing(self)
        if not differing:
            return None
        return (
            f"machine {socket.gethostname()}: {first_few(differing, NUM_NAMED)} differ from the driver's, "
            "expected the same code everywhere; rebuild the nodes' image or install the driver's commit on them "
            "(if the code was edited during the run: run it again)"
        )

    def require(self) -> None:
        """Refuses to work with code that differs from the sender's.

        Raises:
            UserError: if this machine's code differs.
        """
        if trouble := self.trouble():
            raise UserError(trouble)


def fingerprint_modules(names: Iterable[str], ignore: Iterable[str] = ()) -> str:
    """sha256 over the code of modules and of all modules of the same package that they import, directly or not.

    Nothing is imported: files are found and parsed. Comments, docstrings and layout do not count.

    Args:
        names: dotted modules (`magic141.models.vae`), or a file beside a package's modules
            (`magic141.evaluation.reports:report.html.j2`).
        ignore: dotted modules that do not determine results; their imports are not followed.
    """
    return sha256_text("\n".join(f"{name}\0{digest}" for name, digest in module_digests(names, ignore).items()))


def module_digests(names: Iterable[str], ignore: Iterable[str] = ()) -> dict[str, str]:
    """The digest of each module's code, from which `fingerprint_modules` is computed."""
    found = module_closure(names, set(ignore))
    return {name: code_of(path).digest for name, path in found.items()}


def edited_modules(names: Iterable[str], ignore: Iterable[str] = ()) -> list[str]:
    """Modules that were edited since this process first asked, so that it may be running older code."""
    found = module_closure(names, set(ignore))
    now = [(name, path, code_of(path).digest) for name, path in found.items()]
    return [name for name, path, digest in now if _first_seen.setdefault(path, digest) != digest]


def module_closure(names: Iterable[str], ignore: set[str]) -> dict[str, Path]:
    """The files behind `names` and behind what they import from their own package, sorted by name."""
    found: dict[str, Path] = {}
    waiting = [(name, _locate(name)) for name in names]
    while waiting:
        name, path = waiting.pop()
        if path is None:
            raise ValueError(f"stage module {name!r}: no such file; correct the stage's `modules`")
        if name in found:
            continue
        found[name] = path
        top = name.partition(".")[0]
        imported = [n for n in code_of(path).imports if n.partition(".")[0] == top]
        waiting += [(n, file) for n in imported if n not in ignore and (file := _locate(n)) is not None]
    return dict(sorted(found.items()))


@lru_cache(maxsize=16)
def _differing(stamp: CodeStamp) -> tuple[str, ...]:
    """Modules that differ or are missing here; cached, as it is asked for every row of data."""
    here = ((name, _locate(name), digest) for name, digest in stamp.digests)
    return tuple(name for name, path, digest in here if path is None or code_of(path).digest != digest)


def _locate(name: str) -> Path | None:
    """The file of a module (or of a `package:file`), or None; top-level packages are looked up without importing."""
    module, _, resource = name.partition(":")
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
    options = [path / resource] if resource else [path.parent / f"{path.name}.py", path / "__init__.py"]
    return next((option for option in options if option.is_file()), None)
