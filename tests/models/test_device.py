"""Large networks are not sampled on a CPU by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magic141.config import load_config
from magic141.errors import UserError
from magic141.export import BUNDLE_FILE, BundleInfo, load_bundle
from magic141.models.device import refuse_large_on_cpu, sampling_device
from magic141.models.transformer import build_transformer
from tests.models.tiny import tiny_transformer

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("num_gpus", "expected"), [(None, "cuda"), (1.0, "cuda"), (0.25, "cuda"), (0.0, "cpu")], ids=str
)
def test_a_worker_that_was_given_no_gpu_takes_none(
    num_gpus: float | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray leaves its machine's GPUs visible."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sampling_device(num_gpus).type == expected


def save_13b_config(folder: Path) -> None:
    with torch.device("meta"):
        model = build_transformer(load_config(CONFIGS / "hunyuan_13b.yaml").model, 16, 4096, 768, True, True)
    model.save_config(folder)


def test_13b_on_a_cpu_is_refused_with_its_size_and_a_remedy(tmp_path: Path) -> None:
    save_13b_config(tmp_path)
    with pytest.raises(UserError, match=r"12\.8e9 parameters and no GPU.*; use another machine$") as raised:
        refuse_large_on_cpu(tmp_path, CPU, "use another machine")
    assert str(raised.value).startswith(str(tmp_path))


def test_a_published_13b_model_is_not_loaded_without_a_gpu(tmp_path: Path) -> None:
    info = BundleInfo(
        height=544,
        width=960,
        fps=24,
        window_frames=129,
        num_steps=4,
        shift=5,
        sampler="euler",
        guidance_scale=3.5,
        num_carried=2,
    )
    (tmp_path / BUNDLE_FILE).write_text(info.model_dump_json())
    save_13b_config(tmp_path / "transformer")
    with pytest.raises(UserError, match=r"12\.8e9 parameters"):
        load_bundle(tmp_path, CPU)


def test_13b_on_a_gpu_and_a_small_network_anywhere_are_not(tmp_path: Path) -> None:
    save_13b_config(tmp_path / "large")
    tiny_transformer().save_config(tmp_path / "small")
    refuse_large_on_cpu(tmp_path / "large", torch.device("cuda"), "")
    refuse_large_on_cpu(tmp_path / "small", CPU, "")
    refuse_large_on_cpu(tmp_path / "nowhere", CPU, "the loader says what is missing")
