"""What the chaos benchmark did and found: kept after every step, told at the end."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos_run import STARTING

from tasks.pipeline import STAGES


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: whom it hit, when, and what the run did."""

    pipeline: str
    stage: str
    target: str
    after_s: float
    run_ended: str


@dataclass
class Record:
    """What was done so far; kept in a file after every step."""

    kills: list[Kill] = field(default_factory=list)
    finished: dict[str, list[str]] = field(default_factory=dict)  # pipeline -> problems
    attempts: int = 0

    def save(self, file: Path) -> None:
        """Writes it."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, file: Path) -> Record:
        """Reads it; an empty one where there is none."""
        if not file.exists():
            return cls()
        values = json.loads(file.read_text())
        return cls([Kill(**kill) for kill in values["kills"]], values["finished"], values["attempts"])


def summary(record: Record) -> str:
    """Markdown: kills by target and by stage, and what was found."""
    bad = {name: found for name, found in record.finished.items() if found}
    stages = [STARTING, *(stage.name for stage in STAGES)]
    targets = sorted({kill.target for kill in record.kills})
    count = Counter((kill.target, kill.stage) for kill in record.kills)
    lines = ["| killed in | " + " | ".join(targets) + " |", "|---|" + "--:|" * len(targets)]
    lines += [f"| {s} | {' | '.join(str(count[t, s] or '-') for t in targets)} |" for s in stages]
    lines.append("| all | " + " | ".join(str(sum(k.target == t for k in record.kills)) for t in targets) + " |")
    head = (
        f"{len(record.kills)} kills in {len(record.finished)} pipelines; {record.attempts} times a run ended and was "
        f"resumed; {len(record.finished) - len(bad)} of {len(record.finished)} pipelines finished as undisturbed."
    )
    found = [f"- {name}: {line}" for name, lines_ in bad.items() for line in lines_]
    return "\n".join([head, "", *lines, *([""] if found else []), *found])
