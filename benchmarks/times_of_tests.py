"""Wall-clock time of the tests, part by part: lint, types and contracts, unit tests, slow tests.

    python benchmarks/times_of_tests.py

Runs the targets of `make test` one after the other in this checkout, and stops with the first that fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from documents import ROOT, store_results
from environment import machine, settle

TARGETS = ("lint", "unit", "slow")
LIMITS_S = {"unit": 5 * 60, "all": 25 * 60}
SUMMARY = re.compile(r"=+ (\d+ passed.*?) in [\d.]+s")


@dataclass(frozen=True)
class Part:
    """One target of the Makefile and what it took."""

    target: str
    summary: str
    wall_s: float


def run(target: str) -> Part:
    """`make TARGET`, shown as it goes; ends this script where it fails."""
    start, shown = time.perf_counter(), []
    command, pipe = ["make", target], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True) as made:
        for line in made.stdout or ():
            sys.stdout.write(line)
            shown.append(line)
    if made.returncode:
        raise SystemExit(f"make {target}: exit code {made.returncode}")
    found = SUMMARY.search("".join(shown))
    return Part(target, found.group(1) if found else "clean", time.perf_counter() - start)


def table(parts: Sequence[Part]) -> str:
    """Markdown, with the sum and what it may be."""
    rows = [f"| `make {part.target}` | {part.summary} | {part.wall_s:.0f} | {_limit(part.target)} |" for part in parts]
    total = sum(part.wall_s for part in parts)
    head = [f"{machine()}:", "", "| | | wall s | limit |", "|---|---|--:|--:|"]
    return "\n".join([*head, *rows, f"| `make test` | | {total:.0f} | {_limit('all')} |"])


def _limit(target: str) -> str:
    return f"{LIMITS_S[target]}" if target in LIMITS_S else ""


def main() -> None:
    """Measures, prints and stores."""
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    parts = [run(target) for target in TARGETS]
    text = table(parts)
    print(text)
    store_results("test_times", text, parts=[asdict(part) for part in parts])


if __name__ == "__main__":
    main()
