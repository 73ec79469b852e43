from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flows.planning.needs import needs_of
from magic141.config import load_config

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("cluster", [False, True])
def test_what_a_machine_without_gpus_lacks_is_said_unless_a_cluster_does_the_work(
    cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379" if cluster else "")
    config = load_config(CONFIGS / "smoke_gpu.yaml")
    here, rays = (needs_of(stage, config).lacking_here() for stage in ("pretrain_t2v", "pretrain_i2v"))
    assert str(here).endswith("use 0, or launcher = ray with RAY_ADDRESS of a cluster")  # launcher: local
    assert (rays is None) == cluster
    assert needs_of("evaluate", config).lacking_here() is None
