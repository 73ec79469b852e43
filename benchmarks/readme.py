"""Puts a measured table between two comment markers of the README."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
RESULTS = Path(__file__).resolve().parent / "results"


def write_section(name: str, text: str, readme: Path = README) -> None:
    """Replaces what stands between `<!-- name:begin -->` and `<!-- name:end -->` by `text`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    page = readme.read_text()
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"{readme.name}: expected exactly one {begin} and one {end}")
    head, rest = page.split(begin)
    readme.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")
