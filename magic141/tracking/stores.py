"""Remembers which stores beside a workspace's own have runs with files in it: cleaning has to ask them, too."""

from __future__ import annotations

import os
from pathlib import Path

from magic141.urls import without_credentials

STORES = ".stores"


def note_store(workspace: Path, uri: str) -> None:
    """Adds a store, without credentials, to the workspace's list; call it under the workspace's lock."""
    shown = without_credentials(uri)
    if shown not in noted_stores(workspace) and os.access(workspace, os.W_OK):
        with (workspace / STORES).open("a", encoding="utf-8") as file:
            file.write(f"{shown}\n")


def noted_stores(workspace: Path) -> list[str]:
    """The stores beside its own that were ever used with the workspace, oldest first."""
    file = workspace / STORES
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
