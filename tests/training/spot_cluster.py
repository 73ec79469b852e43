"""Trains on a Ray cluster that loses a machine, with notice; `test_launch.py` runs it in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from magic141.cluster.session import ensure_ray
from magic141.stage_log import NullLog
from magic141.training.config import TrainConfig
from magic141.training.launch import launch
from tests.training.linear import LinearSpec, linear_config
from tests.waiting import wait_for

NOTICE_S = 15
NUM_STEPS = 60


def rarely_saving(**placement: Any) -> TrainConfig:
    """A training that saves no checkpoint of its own accord but the last."""
    return linear_config(NUM_STEPS, **placement).model_copy(update={"checkpoint_every_steps": 1000})


def main(run_dir: Path) -> None:
    """Both workers begin on one node, which is to go within NOTICE_S once training has begun; another comes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    os.environ |= {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
    leaving = cluster.add_node(num_cpus=2)
    ensure_ray()
    config = rarely_saving(launcher="ray", engine="ddp", num_workers=2, max_failures=0)
    spec = LinearSpec(config, noise=0.0, step_s=0.5)
    training = threading.Thread(target=launch, args=(spec, config, run_dir, NullLog(), 0))
    training.start()
    wait_for((run_dir / "progress.jsonl").exists)
    cluster.add_node(num_cpus=2)
    take_away(leaving.node_id, cluster.address)
    training.join()
    ray.shutdown()
    cluster.shutdown()


def take_away(node_id: str, address: str) -> None:
    """What an autoscaler does with the notice of a cloud."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, *reason, "--deadline-remaining-seconds", str(NOTICE_S)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
