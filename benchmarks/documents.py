"""Where measured tables go: benchmarks/results, and between two comment markers of the README or of a page in docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from environment import made_with

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "distillation.md")
RESULTS = Path(__file__).resolve().parent / "results"


def write_section(name: str, text: str) -> None:
    """Replaces what stands between `<!-- name:begin -->` and `<!-- name:end -->`, in whichever document that is."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pages = {document: document.read_text() for document in DOCUMENTS}
    if sum(page.count(begin) for page in pages.values()) != 1:
        raise SystemExit(f"{' and '.join(map(str, DOCUMENTS))}: expected one {begin} in all")
    document, page = next((document, page) for document, page in pages.items() if begin in page)
    head, rest = page.split(begin)
    if rest.count(end) != 1:
        raise SystemExit(f"{document}: expected one {end} after {begin}")
    document.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")


def store_results(name: str, text: str, **record: Any) -> None:
    """Writes results/NAME.json, which also says on what machine and with which code, and the table results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    content = json.dumps({"made_with": made_with(), **record}, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(content + "\n")
    (RESULTS / f"{name}.md").write_text(text.strip() + "\n")
