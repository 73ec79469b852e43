"""The files of infra/ say what servers take, and nothing that can never happen."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore
from prefect.utilities.templating import apply_values

from magic141.config import load_config, missing_sources

INFRA = Path(__file__).parents[1] / "infra"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("infra_check", INFRA / "check.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_deployments_have_no_faults(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(INFRA / "prefect.yaml") == 0
    assert "7 deployments, no faults" in capsys.readouterr().out


def test_the_claim_that_is_created_is_the_one_that_pods_mount() -> None:
    claim = yaml.safe_load((INFRA / "kubernetes" / "workspace.yaml").read_text())
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    defaults = {name: field.get("default") for name, field in template["variables"]["properties"].items()}
    assert claim["metadata"] == {"name": defaults["workspace_claim"], "namespace": defaults["namespace"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schedules": [{"cron": "0 0 31 2 *"}]}, "schedule : cron = 0 0 31 2 *: never fires"),
        ({"schedule": {"cron": "0 0 31 2 *"}}, "schedule : cron = 0 0 31 2 *: never fires"),
        ({"schedules": [{"cron": "0 0 30 2 *", "timezone": "Europe/Berlin"}]}, "timezone = Europe/Berlin: never fires"),
        ({"schedules": [{"cron": "61 * * * *"}]}, 'Invalid cron string: "61 * * * *"'),
        ({"schedules": [{"cron": "0 2 * * *", "timezone": "Europe/Berln"}]}, 'Invalid timezone: "Europe/Berln"'),
        ({"schedules": [{"slug": "x", "rrule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;COUNT=1"}]}, "never fires"),
        ({"schedules": [{"timezone": "UTC"}]}, "expected one of cron, interval, rrule"),
        ({"parameters": {"confg": "configs/demo.yaml"}}, "parameter confg: the flow magic141 has none"),
        ({"parameters": {"config": "configs/nowhere.yaml"}}, "parameter config = configs/nowhere.yaml: no such file"),
        ({"triggers": [{}, {"parameters": {"modl": "x"}}]}, "parameter modl: the flow magic141 has none"),
        ({"entrypoint": "flows.pipeline.pipelin"}, "entrypoint flows.pipeline.pipelin:"),
    ],
)
def test_faults_are_named(check: ModuleType, change: dict[str, Any], fault: str) -> None:
    deployment = {"name": "train", "entrypoint": "flows.pipeline.pipeline", **change}
    (found,) = check.faults(deployment)
    assert fault in found


def test_a_file_that_is_not_there_is_one_line(
    check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main(tmp_path / "nowhere.yaml") == 1
    assert "nowhere.yaml: expected a readable YAML file" in capsys.readouterr().out


def test_every_variable_of_the_kubernetes_template_is_declared_and_used() -> None:
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


# What prefect-kubernetes 0.8.0 reads of a job's configuration. It also has fields for time limits and for output, which
# do nothing: its `run` makes the job and returns.
READ = {"command", "env", "labels", "name", "namespace", "job_manifest", "cluster_config"}


def test_the_kubernetes_template_sets_nothing_that_has_no_effect() -> None:
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    assert template["job_configuration"].keys() == READ


def test_a_deployment_says_on_which_nodes_its_pods_run() -> None:
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    defaults = {k: field["default"] for k, field in template["variables"]["properties"].items() if "default" in field}
    spec = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    plain = apply_values(spec, defaults)
    assert plain["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert (plain["nodeSelector"], plain["imagePullSecrets"]) == ({}, [])
    chosen = {"node_selector": {"zone": "a"}, "image_pull_secrets": [{"name": "registry"}], "tolerations": []}
    pod = apply_values(spec, defaults | chosen)
    assert (pod["nodeSelector"], pod["imagePullSecrets"], pod["tolerations"]) == tuple(chosen.values())
    assert "serviceAccountName" not in pod  # runs ask Kubernetes for nothing


# The calls of prefect-kubernetes 0.8.0, as recorded by a server in Kubernetes' place: its worker's, and its observer's.
CALLS = {
    ("batch", "jobs"): {"create", "delete", "get", "list", "watch"},
    ("", "pods"): {"list", "watch"},
    ("", "pods/log"): {"get"},
}


def test_the_worker_may_do_what_it_does_and_no_more() -> None:
    account, role, binding = yaml.safe_load_all((INFRA / "kubernetes" / "worker-rbac.yaml").read_text())
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    namespace = template["variables"]["properties"]["namespace"]["default"]
    assert {part["metadata"]["namespace"] for part in (account, role, binding)} == {namespace}
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    subject = {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": namespace}
    assert binding["subjects"] == [subject]
    allowed = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert allowed == CALLS
    guide = (INFRA / "README.md").read_text()
    assert (
        f"PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES={namespace}" in guide
    )  # else it watches every namespace
    assert f"set serviceaccount deployment/worker {subject['name']}" in guide


# prefect-kubernetes (0.7.13 to 0.8.0) refuses every run of a manifest that lacks a part of this, or has another value.
# The first two belong into the spec of a job, but it looks for them in the pod's, where Kubernetes ignores them.
REQUIRED = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "spec": {
        "template": {
            "spec": {
                "parallelism": 1,
                "completions": 1,
                "restartPolicy": "Never",
                "containers": [{"name": "prefect-job"}],
            }
        }
    },
}


def lacking(manifest: Any, required: Any, path: str = "") -> Iterator[str]:
    """Paths of what `required` has and `manifest` has not, or has otherwise."""
    if isinstance(required, dict):
        for name, value in required.items():
            yield from lacking(manifest.get(name, {}), value, f"{path}/{name}")
    elif isinstance(required, list):
        for row, value in enumerate(required):
            yield from lacking(manifest[row], value, f"{path}/{row}")
    elif manifest != required:
        yield path


def test_the_kubernetes_worker_takes_the_manifest() -> None:
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    manifest = template["job_configuration"]["job_manifest"]
    assert list(lacking(manifest, REQUIRED)) == []
    del manifest["spec"]["template"]["spec"]["parallelism"]
    assert list(lacking(manifest, REQUIRED)) == ["/spec/template/spec/parallelism"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", ["flow-run execute"]),
        ("head:6379", ["joined start --address=head:6379 --num-cpus=0 --num-gpus=0", "flow-run execute"]),
        ("nowhere:6379", ["joined start --address=nowhere:6379 --num-cpus=0 --num-gpus=0"]),
    ],
)
def test_a_pod_joins_the_ray_cluster_before_its_flow_starts(address: str, expected: list[str], tmp_path: Path) -> None:
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    (container,) = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\necho "joined $@"\ncase "$2" in *nowhere*) exit 1;; esac\n')
    ray.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_ADDRESS": address}
    run = [*container["command"], "echo", "flow-run", "execute"]  # the worker gives the flow's command as a list
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == expected
    assert done.returncode == (1 if "nowhere" in address else 0)


def test_every_pod_that_samples_has_a_gpu() -> None:
    deployments = yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]
    pods = [d["work_pool"] for d in deployments if d["name"].startswith("kubernetes-")]
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    assert len(pods) == 3
    for pod in pods:
        assert pod["job_variables"]["num_gpus"] == 1
        assert (
            pod["job_variables"]["image"] == "registry.example.org/magic141:COMMIT"
        )  # a tag that never has other code
        assert pod["job_variables"].keys() <= template["variables"]["properties"].keys()


def test_pods_train_evaluate_and_serve_one_model_on_the_volume() -> None:
    deployments = yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]
    pods = {d["name"].removeprefix("kubernetes-"): d for d in deployments if d["name"].startswith("kubernetes-")}
    given = pods["train"]["parameters"]
    config = load_config(INFRA.parent / given["config"], given["overrides"])
    model = f"models:/{config.publish.model_name}@{config.publish.champion}"
    assert pods["evaluate-champion"]["parameters"]["model"] == model
    served = (INFRA / "kuberay" / "rayservice.yaml").read_text()
    assert set(re.findall(r"models:/[^\s\"]+", served)) == {model}
    assert all(": no such" in line and " = /workspace/" in line for line in missing_sources(config))
    for pod in pods.values():
        behaviour = pod["work_pool"]["job_variables"]["env"]["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"]
        assert behaviour == "reschedule"


def test_automations_are_what_the_server_takes() -> None:
    shipped = yaml.safe_load((INFRA / "automations.yaml").read_text())["automations"]
    (shown,) = re.findall(r"```yaml\n(name: .*?)```", (INFRA / "README.md").read_text(), re.DOTALL)
    for automation in [*shipped, yaml.safe_load(shown)]:
        taken = AutomationCore.model_validate(automation)
        assert taken.trigger.model_dump(mode="json")["posture"] == "Proactive"
    # a pod may wait for a node as long as others train: no run is ended for being Pending
    assert not any("prefect.flow-run.Pending" in automation["trigger"]["after"] for automation in shipped)


def test_the_guide_names_every_deployment_and_the_versions_that_it_was_tried_with() -> None:
    guide, front = (INFRA / "README.md").read_text(), (INFRA.parent / "README.md").read_text()
    deployments = yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]
    assert [d["name"] for d in deployments if f"/{d['name']}` |" not in guide] == []
    lines = (INFRA.parent / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert f"Prefect {pinned['prefect']} and MLflow {pinned['mlflow']}" in guide
    assert f"prefect-kubernetes {pinned['prefect-kubernetes'].removesuffix('.0')}" in guide
    assert f"PyPI's build of torch {pinned['torch'].removesuffix('.0')}" in front


def test_the_model_is_fetched_from_the_server_and_with_the_login_that_runs_have() -> None:
    service = yaml.safe_load((INFRA / "kuberay" / "rayservice.yaml").read_text())
    template = json.loads((INFRA / "kubernetes" / "base-job-template.json").read_text())
    defaults = {name: field.get("default") for name, field in template["variables"]["properties"].items()}
    assert service["metadata"]["namespace"] == defaults["namespace"]  # a secret is seen in its own namespace only
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (fetching,) = group["template"]["spec"]["initContainers"]
        assert fetching["envFrom"] == [{"secretRef": {"name": defaults["secret_name"]}}]
    (gpus,) = cluster["workerGroupSpecs"]
    assert gpus["template"]["spec"]["tolerations"] == defaults["tolerations"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_servers_know_their_processes_by_a_start_that_no_time_zone_changes(tmp_path: Path) -> None:
    script = (INFRA / "servers.sh").read_text()
    (function,) = re.findall(r"^started_at\(\) \{$.*?^\}$", script, re.MULTILINE | re.DOTALL)
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / "a) S 1 (b")
    with subprocess.Popen([program, "60"]) as process:

        def began(function: str, zone: str) -> str:
            command = ["bash", "-c", f'{function}\nstarted_at "$1"', "bash", str(process.pid)]
            environment = {**os.environ, "TZ": zone}
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert began(function, "UTC") == f"{ticks} {boot}"
        without = function.replace("/proc/", "/nowhere/")
        assert began(without, "UTC") == began(without, "JST-9") != ""
        process.kill()
