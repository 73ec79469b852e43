"""Renders self-contained HTML pages and reads what they show from artifacts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from magic141.data.videos.video import shrunk_video
from magic141.text_files import read_json_lines

MIN_TILE, MAX_TILE = 112, 240  # smallest and largest width of a shown video, in screen pixels
PREVIEW_CRF = 23  # H.264 quality of videos that are shrunk
MIME = {".mp4": "video/mp4", ".png": "image/png"}


def render_page(template: str, **values: Any) -> str:
    """Renders a template of this folder; values are escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(values)


def tile(width: int, zoom: int) -> dict[str, Any]:
    """For templates: the width of videos in screen pixels, and whether they are enlarged without smoothing."""
    return {"tile": max(MIN_TILE, min(MAX_TILE, width * zoom)), "pixelated": width < MIN_TILE}


def media_uri(file: Path) -> str:
    """A video or picture as a data URI; videos are shrunk to at most twice the largest shown width."""
    content = shrunk_video(file, 2 * MAX_TILE, PREVIEW_CRF) if file.suffix == ".mp4" else file.read_bytes()
    return f"data:{MIME[file.suffix]};base64,{base64.b64encode(content).decode()}"


def media_of(folder: Path, stem: str) -> dict[str, str] | None:
    """The video or picture with this stem, ready for a template; None if there is neither."""
    for suffix, kind in ((".mp4", "video"), (".png", "image")):
        file = folder / f"{stem}{suffix}"
        if file.is_file():
            return {"kind": kind, "src": media_uri(file)}
    return None


def read_json(parts: Mapping[str, Path], stage: str, name: str) -> Any:
    """The content of a JSON file in a stage's artifact; None if the stage or the file is missing."""
    file = parts[stage] / name if stage in parts else None
    return json.loads(file.read_text()) if file is not None and file.is_file() else None


def read_lines(parts: Mapping[str, Path], stage: str, name: str) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file in a stage's artifact; empty if the stage or the file is missing."""
    file = parts[stage] / name if stage in parts else None
    return read_json_lines(file) if file is not None and file.is_file() else []
