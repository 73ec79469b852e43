"""What is known only once the clips are counted, said before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from magic141.artifacts.references import ArtifactRef
from magic141.config import load_config
from magic141.data.earlier import Earlier
from magic141.errors import UserError
from magic141.stage_log import NullLog
from tasks.prepare_data import STAGE
from tasks.stage import StageCall, StageContext
from tests.models.tiny import INFO

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


class Context:
    """The one thing that is looked at."""

    def __init__(self, overrides: list[str]) -> None:
        self.config = load_config(DEMO, overrides)


def count(folder: Path, num_train: int, *overrides: str) -> None:
    (folder / "dataset.json").write_text(INFO.model_copy(update={"num_clips": {"train": num_train}}).model_dump_json())
    ref = ArtifactRef(stage="prepare_data", key="k", uri=str(folder), digest="d", run_id="r")
    assert STAGE.on_ready
    STAGE.on_ready(cast("StageContext", Context(list(overrides))), ref)


def test_a_batch_of_more_clips_than_a_folder_gave_is_named_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        count(tmp_path, 11, "pretrain_t2v.batch_size=10", "pretrain_i2v.batch_size=10", "distill_dmd2.batch_size=16")
    assert str(caught.value).splitlines() == [
        f"{name}.batch_size = 16: the data has only 11 training clips; use a batch of at most 11, more or longer "
        "videos, or a smaller data.stride_frames"
        for name in ("distill_cfg", "distill_dmd2")
    ]


def test_what_is_finished_is_kept_where_the_stage_looks_for_it_again_beside_other_corpora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr("magic141.data.prepare.prepare_dataset", lambda *args: seen.extend(args))
    earlier = (tmp_path / "other",)
    STAGE.run(StageCall(load_config(DEMO), {}, tmp_path / "out", NullLog(), tmp_path / "run", "code", earlier))
    assert seen[1] == tmp_path / "out"
    assert seen[-2:] == [tmp_path / "run", Earlier(earlier, "code")]


def test_batches_that_fit_are_no_matter(tmp_path: Path) -> None:
    count(tmp_path, 16)


def test_other_videos_under_the_same_path_are_another_corpus(tmp_path: Path) -> None:
    config = load_config(DEMO, ["data.source=folder", f"data.path={tmp_path}"])
    before = STAGE.key(config, {}).digest
    (tmp_path / "a.mp4").write_bytes(b"video")
    assert STAGE.key(config, {}).digest != before
