"""A stage as a process of its own, which is how DVC runs them: python stage.py NUMBER."""

import sys
from pathlib import Path

from noop import NUM_STAGES, work

number = int(sys.argv[1])
before = Path(f"text_{number - 1}.txt").read_text() if number > 1 else ""
setting = Path("params.yaml").read_text() if number == NUM_STAGES else ""
Path(f"text_{number}.txt").write_text(work(number, before, setting))
