"""The pictures of docs/distillation.md: what the collapse watch sees of a sound run, and of one driven too hard.

    python benchmarks/watch_picture.py --workspace runs

Trains both students on the teacher of a demo finished in the workspace (about three minutes each), draws their curves
and takes the last sheet of the bad one. Needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from browser import open_page
from environment import settle
from finished import config_in, finished, run_pipeline
from PIL import Image
from screenshots import IMAGES

from flows.planning.plan import make_plan
from magic141.config import load_config
from magic141.evaluation.reports.charts import Series, line_chart
from magic141.tracking import Tracker
from tasks.pipeline import stages_between

WATCH = ("distill_dmd2.validate_every_steps=20", "distill_dmd2.collapse.stop=false")
TOO_HARD = 16.0  # times the generator's rate
CURVES = {
    "validation_frechet": "Fréchet distance to real clips",
    "validation_variance_ratio": "variance, relative to the many-step model",
    "validation_motion_ratio": "motion, relative to the many-step model",
    "validation_diversity_ratio": "difference between seeds, relative to the many-step model",
    "validation_mode_coverage": "share of the many-step model's modes",
}
PAGE = """<meta charset="utf-8"><style>
body {{ font: 14px system-ui, sans-serif; margin: 16px; display: grid; grid-template-columns: 1fr 1fr; gap: 8px 24px; }}
h2 {{ font-size: 15px; margin: 0 0 2px; }} svg {{ width: 100%; font: 11px system-ui; }}
.grid {{ stroke: #ddd; }} .legend span {{ margin-right: 14px; }}
.legend i {{ display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; }}
</style>{charts}"""


def main() -> None:
    """Trains what is missing and writes two pictures."""
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--workspace", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    rate = load_config(Path(arguments.config)).distill_dmd2.optimizer.learning_rate
    hard = ("distill_dmd2.a_weak=0", f"distill_dmd2.optimizer.learning_rate={rate * TOO_HARD}")
    settings = {"the demo's": (), f"plain DMD2, rate x {TOO_HARD:g}": hard}
    watched = {}
    for label, changes in settings.items():
        overrides = [*arguments.overrides, *WATCH, *changes]
        run_pipeline(arguments.config, overrides, arguments.workspace.resolve(), "distill_dmd2")
        config = config_in(arguments.config, overrides, arguments.workspace)
        folder = finished(config, "distill_dmd2")["distill_dmd2"]
        watched[label] = json.loads((folder / "watch.json").read_text())["validations"]
    _draw(watched, IMAGES / "watch_curves.png")
    stage = next(row for row in make_plan(config, stages_between(None, "distill_dmd2")) if row.stage == "distill_dmd2")
    sheet = _last_sheet(Tracker(config.home, config.experiment), str(stage.run_id))
    shutil.copyfile(sheet, IMAGES / "student_real_fake_collapsed.png")


def _draw(watched: Mapping[str, list[dict[str, Any]]], file: Path) -> None:
    """A chart per curve, a line per run."""
    charts = []
    curves = {key: title for key, title in CURVES.items() if all(key in rows[0] for rows in watched.values())}
    for key, title in curves.items():
        lines = [Series(name, [(row["step"], row[key]) for row in rows], dots=True) for name, rows in watched.items()]
        charts.append(f"<div><h2>{title}</h2>{line_chart(lines, 'update', log_y=key.endswith('frechet'))}</div>")
    with tempfile.TemporaryDirectory() as folder, open_page(1000, 620) as page:
        html = Path(folder) / "page.html"
        html.write_text(PAGE.format(charts="".join(charts)), encoding="utf-8")
        page.open(html.as_uri())
        page.wait_for(f"document.querySelectorAll('svg').length == {len(curves)}")
        page.picture(file)
    Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE).save(file, optimize=True)


def _last_sheet(tracker: Tracker, run_id: str) -> Path:
    """The newest `student_real_fake` picture of a run."""
    images = [item.path for item in tracker.client.list_artifacts(run_id, "images")]
    sheets = [path for path in images if "student_real_fake" in path and path.endswith(".png")]
    newest = max(sheets, key=lambda path: int(path.split("+")[2]))  # NAME+step+NUMBER+…
    return Path(tracker.client.download_artifacts(run_id, newest))


if __name__ == "__main__":
    main()
