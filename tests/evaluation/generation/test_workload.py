from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from magic141.data.videos.video import read_image
from magic141.evaluation.generation.workload import prepare_workload, write_conditions
from magic141.retrieval.prior import Hit, ImagePrior
from tests.evaluation.artifacts import GENERATE, SIZE, RecordingLog
from tests.models.tiny import CONFIG


def _workload(parts: dict[str, Path], data: Path, out: Path) -> tuple[RecordingLog, list[dict[str, object]]]:
    log = RecordingLog()
    work = prepare_workload(GENERATE, CONFIG, data, parts["train_clip"], parts["build_index"], log, 0)
    write_conditions(work, out)
    return log, [json.loads(line) for line in (out / "suite" / "prompts.jsonl").read_text().splitlines()]


def test_an_image_of_the_prompts_own_video_is_named_as_such(
    generated_from_folder: dict[str, Path], tmp_path: Path
) -> None:
    """Where tails are held out, the index holds earlier images of the videos that the prompts describe."""
    data = tmp_path / "data"
    shutil.copytree(generated_from_folder["prepare_data"], data)
    log, rows = _workload(generated_from_folder, data, tmp_path / "whole")
    assert not any("of the very video" in note for note in log.notes)
    assert "own_video" not in json.dumps(rows)
    lines = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    (data / "manifest.jsonl").write_text("".join(json.dumps({**line, "source": "one.mp4"}) + "\n" for line in lines))
    log, rows = _workload(generated_from_folder, data, tmp_path / "tails")
    num = GENERATE.num_prompts
    assert any(f"for {num} of {num} prompts is of the very video" in note for note in log.notes)
    assert json.dumps(rows).count('"own_video": true') == num


def test_images_of_another_size_are_fitted_to_the_one_that_is_judged(
    generated_from_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upright = Hit("a", "a", 1.0, np.full((SIZE, SIZE // 2, 3), 9, np.uint8))
    real = ImagePrior.retrieve

    def retrieve(prior: ImagePrior, prompt: str, k: int) -> list[Hit]:
        asked.append(prompt)
        return [*[upright] * (len(asked) - 1), *real(prior, prompt, k)]

    asked: list[str] = []
    monkeypatch.setattr(ImagePrior, "retrieve", retrieve)
    _, rows = _workload(generated_from_folder, generated_from_folder["prepare_data"], tmp_path)
    assert rows[1]["clip"] == "a"
    assert read_image(tmp_path / "suite" / "images" / "01-0.png").shape[0] >= SIZE


def test_clips_are_decoded_a_batch_at_a_time(generated_from_folder: dict[str, Path]) -> None:
    """A suite of hundreds of prompts at full size is more than a machine's memory."""
    parts = generated_from_folder
    work = prepare_workload(
        GENERATE, CONFIG, parts["prepare_data"], parts["train_clip"], parts["build_index"], RecordingLog(), 0
    )
    latents, decoded = work.heldout.latents[:, :, : work.latent_frames], []
    codec = work.codec

    def decode(batch: Tensor) -> Tensor:
        decoded.append(len(batch))
        return codec.decode_video(batch)

    vars(work)["codec"] = SimpleNamespace(decode_video=decode)
    latents = torch.cat([latents] * 3)[: 2 * GENERATE.batch_size + 1]
    clips = work.decoded(latents)
    first = next(clips)
    assert decoded == [GENERATE.batch_size]
    assert torch.equal(torch.stack([first, *clips]), codec.decode_video(latents))
    assert torch.equal(work.decode(latents), codec.decode_video(latents))
