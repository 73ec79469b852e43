"""Pictures of what a person sees: MLflow's run tree and compare view, Prefect's flow-run page, the HTML report.

    python benchmarks/screenshots.py --workspace runs

Starts an MLflow and a Prefect server on loopback, on the databases of the workspace, and opens the pages of its newest
pipeline run, and of one more to compare, in a headless Chromium. The pictures go to docs/images; one that is blank
stops the script.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from browser import BrowserError, Page, find_browser, open_page
from PIL import Image
from servers import mlflow_server, prefect_server, running

from magic141.tracking import Run, Tracker

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH, HEIGHT = 1600, 1000
TALL, MARGIN = 3000, 8  # pixels below the last element
FLOW_RUN = "prefect.flow_run_id"
SETTLE_S = 2.0  # charts move into place
MIN_COLOURS, MAX_SHARE_OF_ONE = 50, 0.985
# What MLflow's pages keep in the browser: a panel with an assistant would open at the first visit.
STORED = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
EXPANDERS = "document.querySelectorAll('button[data-component-id*=runnamecellrenderer]')"  # beside runs with children
VIDEOS = "[...document.querySelectorAll('#videos video')]"
# Every clip at the same time; all else is the page that users get.
FOR_README = (
    "document.querySelector('#playback').click()",
    f"{VIDEOS}.forEach(video => {{ video.currentTime = 0.9; }})",
)
EXPAND = (f"[...{EXPANDERS}].forEach(button => button.click())",)


@dataclass(frozen=True)
class Shot:
    """One picture: of which page, when it is ready, what to do there first.

    Attributes:
        name: of the file.
        url: the page.
        ready: JavaScript that is true once the page shows what it should.
        steps: JavaScript to run then, one after the other.
        shown: JavaScript that is true once they have had their effect.
        width: of the page, pixels.
        settle_s: seconds to wait after that: a video is painted some time after it has its frame.
        ends_with: the picture ends below this element (a CSS selector), wherever that is; none: one screen.
    """

    name: str
    url: str
    ready: str
    steps: tuple[str, ...] = ()
    shown: str = "true"
    width: int = WIDTH
    settle_s: float = SETTLE_S
    ends_with: str | None = None


def shots(mlflow: str, prefect: str, runs: list[Run], report: Path) -> Iterator[Shot]:
    """Every picture."""
    newest = runs[0]
    experiment, run_id, flow_run = (
        newest.info.experiment_id,
        newest.info.run_id,
        newest.data.tags[FLOW_RUN],
    )
    yield Shot(
        "mlflow_runs", f"{mlflow}/#/experiments/{experiment}/runs", f"{EXPANDERS}.length", EXPAND, _says("pretrain_t2v")
    )
    yield Shot("mlflow_run", f"{mlflow}/#/experiments/{experiment}/runs/{run_id}", _says("Metrics ("))
    ids, experiments = (quote(json.dumps(value)) for value in ([run.info.run_id for run in runs], [experiment]))
    steps = (_click("Visualizations"), _click("Show diff only"))
    yield Shot(
        "mlflow_compare", f"{mlflow}/#/compare-runs?runs={ids}&experiments={experiments}", _says("Run details"), steps
    )
    yield Shot("prefect_flow_run", f"{prefect}/runs/flow-run/{flow_run}", _says("distill_dmd2"))
    loaded = f"{VIDEOS}.every(video => video.readyState >= 2 && !video.seeking)"
    ready = f"document.querySelector('#playback') && {loaded}"
    yield Shot("report", report.as_uri(), ready, FOR_README, loaded, width=1300, settle_s=10, ends_with="#videos")


def _says(text: str) -> str:
    return f"document.body?.innerText.includes({json.dumps(text)})"


def _click(text: str) -> str:
    """Clicks the first element with exactly this text."""
    find = f"//*[normalize-space(text()) = '{text}']"
    kind = "XPathResult.FIRST_ORDERED_NODE_TYPE"
    return f"document.evaluate({find!r}, document, null, {kind}).singleNodeValue.click()"


def prepare(page: Page) -> None:
    """Settings that the pages find in the browser when they open."""
    lines = (f"localStorage.setItem({name!r}, {value!r});" for name, value in STORED.items())
    source = f"if (location.protocol.startsWith('http')) {{ {' '.join(lines)} }}"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=source)


def take(page: Page, shot: Shot, folder: Path) -> None:
    """Opens, waits, pictures, checks."""
    page.resize(shot.width, TALL if shot.ends_with else HEIGHT)  # out of sight a video stands still
    page.open(shot.url)
    page.wait_for(shot.ready)
    for step in shot.steps:
        page.evaluate(step)
    page.wait_for(shot.shown)
    time.sleep(shot.settle_s)
    if shot.ends_with:
        bottom = f"document.querySelector({shot.ends_with!r}).getBoundingClientRect().bottom"
        page.resize(shot.width, int(page.evaluate(bottom)) + MARGIN)
    file = folder / f"{shot.name}.png"
    page.picture(file)
    require_content(file, shot)
    print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB", flush=True)


def require_content(file: Path, shot: Shot) -> None:
    """Stops at a picture of the wrong size, or with hardly anything on it."""
    pixels = np.asarray(Image.open(file).convert("RGB"))
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    if pixels.shape[1] != shot.width or (pixels.shape[0] != HEIGHT and not shot.ends_with):
        raise SystemExit(f"{file.name}: {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {shot.width} x {HEIGHT}")
    if len(colours) < MIN_COLOURS or counts.max() / counts.sum() > MAX_SHARE_OF_ONE:
        raise SystemExit(f"{file.name}: nothing to see: {len(colours)} colours")


def newest_runs(workspace: Path, experiment: str) -> tuple[list[Run], Path]:
    """The newest finished pipeline that ran a stage, another run beside it, and the newest pipeline's report."""
    tracker = Tracker(workspace, experiment)
    condition = "tags.`magic141.kind` != 'stage' and attributes.status = 'FINISHED'"
    order = ["attributes.start_time DESC"]
    found = list(tracker.client.search_runs([tracker.experiment_id], condition, order_by=order))
    whole = [run for run in found if "report" in tracker.artifacts_of(run)]
    pipelines = [run for run in whole if run.data.tags["magic141.kind"] == "pipeline"]
    working = [run for run in pipelines if FLOW_RUN in run.data.tags]  # one that finds all done starts no flow
    if not working or len(whole) < 2:
        raise SystemExit(f"{tracker.uri}: a finished `magic141 run` and one more, or a `magic141 eval`, are needed")
    other = next(run for run in whole if run is not working[0])
    return [working[0], other], tracker.artifacts_of(pipelines[0])["report"].path / "report.html"


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("runs"), help="with runs that used no server")
    parser.add_argument("--experiment", default="magic141")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="pictures to take; without it all")
    parser.add_argument("--out", type=Path, default=IMAGES)
    arguments = parser.parse_args()
    if find_browser() is None:
        parser.error("no browser on PATH: install Debian's chromium, or Google Chrome")
    workspace = arguments.workspace.resolve()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    runs, report = newest_runs(workspace, arguments.experiment)
    arguments.out.mkdir(parents=True, exist_ok=True)
    mlflow, prefect = mlflow_server(workspace), prefect_server(workspace)
    with running(mlflow, prefect), open_page(WIDTH, HEIGHT) as page:
        prepare(page)
        for shot in shots(mlflow.url, prefect.url.removesuffix("/api"), runs, report):
            if arguments.only is None or shot.name in arguments.only:
                try:
                    take(page, shot, arguments.out)
                except BrowserError as error:
                    raise SystemExit(f"{shot.name}: {error}") from None


if __name__ == "__main__":
    main()
