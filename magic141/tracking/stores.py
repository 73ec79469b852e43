"""Remembers which stores beside a workspace's own have runs with files in it: cleaning has to ask them, too."""

from __future__ import annotations

import os
import re
from pathlib import Path

from magic141.urls import without_credentials

STORES = ".stores"
_FILE = "sqlite:///"


def note_store(workspace: Path, uri: str) -> None:
    """Adds a store to the workspace's list; call it under the workspace's lock."""
    if (name := store_name(uri)) not in noted_stores(workspace) and os.access(workspace, os.W_OK):
        with (workspace / STORES).open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")


def noted_stores(workspace: Path) -> list[str]:
    """The names of stores beside its own that were ever used with the workspace, oldest first."""
    file = workspace / STORES
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return list(dict.fromkeys(map(store_name, lines)))  # some may have been noted in other spellings


def store_name(uri: str) -> str:
    """The URI without credentials, in the same spelling for all ways to write it."""
    shown = without_credentials(uri)
    if shown.startswith(_FILE):
        return f"{_FILE}{Path(shown.removeprefix(_FILE).partition('?')[0]).resolve()}"
    return re.sub(r"(?i)^https?://[^/?#]+", lambda host: host[0].lower(), shown).rstrip("/")
