from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from magic141.models.transformer import add_guidance_embedding, build_transformer
from tests.evaluation.artifacts import CHANNELS, make_data
from tests.models.tiny import CONFIG
from tests.training.forks import run_on_forks


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny corpus, a teacher and a student with w as an input."""
    folder = tmp_path_factory.mktemp("dmd2")
    info = json.loads((make_data(folder / "data") / "dataset.json").read_text())
    torch.manual_seed(0)
    teacher = build_transformer(CONFIG, CHANNELS, info["text_width"], info["pooled_width"], True, False)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # the network starts with zeros, which would hide mistakes
    teacher.save_pretrained(folder / "teacher")
    add_guidance_embedding(teacher).save_pretrained(folder / "student")
    return folder


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher "ray" starts forks: for what several workers compute, whoever starts them."""
    monkeypatch.setattr("magic141.training.launch.run_on_ray", run_on_forks)
