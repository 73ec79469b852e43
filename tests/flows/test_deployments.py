"""Deployments for real: a server, a pool, a worker; a schedule fires, the second run waits, an event starts another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
from mlflow import MlflowClient

from tests import waiting
from tests.flows.conftest import Webhook
from tests.ports import free_port
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "data.shapes.num_train=32",
    "data.shapes.num_validation=8",
    "data.shapes.num_heldout=8",
    "data.codec.num_fit_clips=16",
]
PASSWORD = "s3cret-webhook"
ANSWER_S = 90  # Prefect itself waits for its database for up to 60
wait_for = partial(waiting.wait_for, every_s=0.5)  # the server has more to do than to answer this

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Site:
    """A Prefect server with nothing in it, and the environment that points at it."""

    api: str
    folder: Path
    environment: dict[str, str]

    def post(self, path: str, **body: Any) -> Any:
        """Asks the server's API."""
        request = Request(f"{self.api}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=ANSWER_S) as answer:
            return json.loads(answer.read() or "null")

    def prefect(self, *arguments: str) -> str:
        """`prefect …` in the repository's root."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(self, *arguments: str) -> None:
        """`prefect deploy` with the shipped file."""
        self.prefect("deploy", "--prefect-file", "infra/prefect.yaml", *arguments)

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Flow runs of a deployment, oldest first."""
        chosen = {"name": {"any_": [deployment]}}
        return list(self.post("/flow_runs/filter", deployments=chosen, sort="EXPECTED_START_TIME_ASC"))

    @contextmanager
    def process(self, log: str, *arguments: str, patience_s: float) -> Iterator[Path]:
        """`python -m …` for a while; yields its log."""
        with (self.folder / log).open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=self.folder, env=self.environment, stdout=file, stderr=file
            )
            try:
                yield self.folder / log
            finally:
                stop(process, patience_s)


def stop(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ends it. A worker waits for runs that still go on, on a busy machine too long; a server for all its clients."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    port = free_port()
    own = {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "MAGIC141_HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PWD": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
    }
    foreign = ("MLFLOW_TRACKING_URI", "MAGIC141_NOTIFY_URL", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in foreign} | own
    site = Site(own["PREFECT_API_URL"], folder, environment)

    def healthy() -> bool:
        with urlopen(f"{site.api}/health", timeout=5) as answer:
            return bool(answer.read() == b"true")

    command = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with site.process("server.log", *command, patience_s=2):
        wait_for(healthy)
        template = json.loads((ROOT / "infra" / "kubernetes" / "base-job-template.json").read_text())
        site.post("/work_pools/", name="magic141", type="process")
        site.post("/work_pools/", name="magic141-kubernetes", type="kubernetes", base_job_template=template)
        yield site


@pytest.fixture(scope="module")
def worker(site: Site) -> Iterator[Path]:
    """A worker of the pool; its log."""
    command = ("prefect", "worker", "start", "--pool", "magic141", "--limit", "2")
    with site.process("worker.log", *command, patience_s=5) as log:
        yield log


def test_a_schedule_fires_and_the_second_run_waits_for_the_first(site: Site, worker: Path) -> None:
    parameters = {"config": "configs/smoke.yaml", "until": "prepare_data", "overrides": TINY}
    site.deploy("--name", "train", "--params", json.dumps(parameters))
    site.prefect("deployment", "schedule", "create", "magic141/train", "--interval", "5")

    def one_waits_for_another() -> list[str]:
        names = {run["state_name"]: run["id"] for run in site.runs("train")}
        return [names[name] for name in ("Running", "AwaitingConcurrencySlot") if name in names][:2]

    kept = wait_for(lambda: found if len(found := one_waits_for_another()) == 2 else [])
    site.prefect("deployment", "schedule", "clear", "magic141/train", "--accept-yes")
    for run in wait_for(lambda: site.runs("train")):
        if run["id"] not in kept:  # what the schedule has made since then
            site.post(f"/flow_runs/{run['id']}/set_state", state={"type": "CANCELLED"}, force=True)

    def finished() -> list[dict[str, Any]]:
        done = [run for run in site.runs("train") if run["id"] in kept and run["end_time"]]
        return sorted(done, key=lambda run: str(run["start_time"])) if len(done) == 2 else []

    first, second = wait_for(finished)
    assert (first["state_type"], second["state_type"]) == ("COMPLETED", "COMPLETED"), worker.read_text()
    assert first["end_time"] <= second["start_time"]
    assert first["auto_scheduled"]

    client = MlflowClient(f"sqlite:///{site.folder / 'home' / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "magic141")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    parents = [run for run in runs if run.data.tags["magic141.kind"] == "pipeline"]
    parents = [run for run in parents if run.data.tags["prefect.flow_run_id"] in kept]
    assert [run.data.tags["prefect.flow_run_id"] for run in parents] == [first["id"], second["id"]]
    assert {run.info.status for run in runs} == {"FINISHED"}
    stages = [run for run in runs if run.data.tags["magic141.kind"] == "stage"]
    assert [run.data.tags["magic141.stage"] for run in stages] == ["prepare_data"]  # made once
    assert parents[1].data.tags["reused.prepare_data"] == stages[0].info.run_id


CANDIDATE = """
import sys
from prefect.blocks.system import Secret
from flows.orchestration.events import announcing_candidate
from magic141.artifacts.digests import digest_folder
from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig
from magic141.tracking import Tracker
from tasks import publish
from tasks.console import StageConsole
from tasks.stage import StageContext

Secret(value=sys.argv[1]).save("magic141-notify-url")
config = PipelineConfig()
tracker = Tracker(config.home, "magic141")
parent = tracker.start_parent("test", "pipeline", {})
context = StageContext(config, tracker, parent.run_id, StageConsole())
student = config.home / "student"
student.mkdir(parents=True)
for stage in ("distill_dmd2", "publish"):
    run = tracker.start_stage(stage, stage, parent.run_id)
    digest = digest_folder(student)
    context.artifacts[stage] = ArtifactRef(stage=stage, key="k", uri=str(student), digest=digest, run_id=run.run_id)
with announcing_candidate(context, [publish.STAGE]):
    publish.STAGE.on_ready(context, context.artifacts["publish"])
print(parent.run_id)
"""


def test_a_new_candidate_starts_its_evaluation_whose_failure_is_posted(
    site: Site, worker: Path, webhook: Webhook
) -> None:
    site.deploy("--name", "evaluate-*", "--name", "kubernetes-train")
    command = [sys.executable, "-c", CANDIDATE, f"{webhook.url}/{PASSWORD}"]
    done = subprocess.run(command, cwd=site.folder, env=site.environment, check=True, stdout=subprocess.PIPE, text=True)
    announced = done.stdout.split()[-1]
    (run,) = wait_for(lambda: site.runs("evaluate-candidate"))
    assert run["parameters"] == {
        "run_id": announced,
        "workspace": str(site.folder / "home"),
        "overrides": ["generate.num_seeds=4"],
    }

    (post,) = wait_for(lambda: webhook.posts)  # the run behind this candidate has nothing to judge
    lines = post["text"].splitlines()
    assert lines[0] == f"magic141-evaluation: run {announced[:8]} · eval · num_seeds=4 failed"
    assert lines[1].endswith(f"/runs/flow-run/{run['id']}")
    assert "has no file config.yaml; give the id of a run of `magic141 run`" in lines[2]
    assert lines[3] == f"correct this, then: prefect flow-run retry {run['id']}"

    def logs() -> str:
        return json.dumps(site.post("/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}))

    wait_for(lambda: "sent a notification of the failure" in logs())
    assert PASSWORD not in logs() + worker.read_text()


def test_the_server_has_taken_every_setting(site: Site, worker: Path) -> None:
    found = {deployment["name"]: deployment for deployment in site.post("/deployments/filter")}
    assert sorted(found) == ["evaluate-candidate", "evaluate-champion", "kubernetes-train", "train"]
    assert all(not deployment["pull_steps"] for deployment in found.values())
    assert found["train"]["global_concurrency_limit"]["limit"] == 1
    assert found["train"]["concurrency_options"] == {"collision_strategy": "ENQUEUE", "grace_period_seconds": 7200}
    (nightly,) = found["evaluate-champion"]["schedules"]
    assert nightly["schedule"]["timezone"] == "Europe/Berlin"


def test_the_server_has_taken_the_automation(site: Site) -> None:
    site.prefect("automation", "create", "--from-file", "infra/automations.yaml")
    (died,) = (a for a in site.post("/automations/filter") if a["name"] == "magic141 runs that have died")
    assert died["enabled"]
    assert (died["trigger"]["posture"], died["trigger"]["within"]) == ("Proactive", 600)
    assert [action["state"] for action in died["actions"]] == ["CRASHED"]
    deployments = {deployment["name"]: deployment for deployment in site.post("/deployments/filter")}
    for name in ("train", "kubernetes-train"):  # whose heartbeats it waits for
        assert deployments[name]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
