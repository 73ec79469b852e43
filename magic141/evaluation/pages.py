"""HTML pages that are one file: nothing to fetch, nothing to install."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

MIME = {".mp4": "video/mp4", ".png": "image/png"}


def render_page(template: str, **values: Any) -> str:
    """Renders a template of this folder; everything in it is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(values)


def media_uri(file: Path) -> str:
    """A video or picture as a data URI."""
    return f"data:{MIME[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
