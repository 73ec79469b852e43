from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magic141.cluster import room
from magic141.cluster.room import cpus_here, shortage, slow_without_gpu, straddling, usable_cpus
from magic141.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("number", "each", "line"),
    [
        (2, {"cpus": 2, "gpus": 0.5}, None),
        (3, {"cpus": 2, "gpus": 0}, "n = 3: with cpus = 2 they take 6 CPUs, of which this machine has 4; lower one"),
        (2, {"gpus": 1}, "n = 2: with gpus = 1 they take 2 GPUs, of which this machine has 1; lower one"),
    ],
)
def test_what_is_asked_for_in_vain_is_named(number: int, each: dict[str, float], line: str | None) -> None:
    found = shortage("n", number, each, {"CPU": 4, "GPU": 1})
    assert found == line if line is None else str(found).startswith(line)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 6),
        ({"cpu.max": ""}, 6),
    ],
)
def test_a_container_uses_no_more_cpus_than_it_may(
    files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 10)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(room, "_CGROUPS", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus() == cpus
    assert cpus_here() == max(2, cpus)


@pytest.mark.parametrize(
    ("size", "gpus", "told"),
    [
        (2, (8, 8), False),
        (1, (7, 8), False),
        (2, (7, 8), True),
        (2, (7,), False),  # all are on one node
        (2, (8, 0), False),  # a node without GPUs has no worker
        (4, (8, 6), True),
    ],
)
def test_workers_that_share_a_clip_should_fill_nodes(size: int, gpus: tuple[int, ...], told: bool) -> None:
    nodes = [{"CPU": 64.0, "GPU": float(number)} for number in gpus]
    line = straddling(size, {"cpus_per_worker": 4, "gpus_per_worker": 1}, nodes)
    assert bool(line) == told
    if line:
        assert f"room for {gpus[0]}, {gpus[1]} workers" in line


def test_two_workers_always_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert cpus_here() == 2


def test_a_run_with_hunyuans_codec_is_told_where_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = load_config(CONFIGS / "hunyuan_13b.yaml").data, load_config(CONFIGS / "smoke_gpu.yaml").data
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "on a node with a GPU" in str(slow_without_gpu(large))
    assert slow_without_gpu(small) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert slow_without_gpu(large) is None
