"""Which files are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from magic141.artifacts.digests import digest_file


def files_read(monkeypatch: pytest.MonkeyPatch, module: str) -> list[str]:
    """The names of the files whose digest `module` takes from here on."""
    names: list[str] = []

    def digest(path: Path) -> str:
        names.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(f"{module}.digest_file", digest)
    return names
