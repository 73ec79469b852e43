"""A published folder as MLflow loads it."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import httpx
import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import init as scoring_server
from starlette.testclient import TestClient

from flows.records.models import find_model
from magic141.artifacts.digests import digest_folder
from magic141.artifacts.references import ArtifactRef
from magic141.data.sizes import Size
from magic141.errors import UserError
from magic141.serving.pyfunc import _load_pyfunc
from magic141.serving.student import Student
from magic141.tracking import Tracker
from tasks.publish import STAGE
from tests.ports import free_port
from tests.serving.conftest import picture, publish
from tests.waiting import PATIENCE_S, wait_for

PROMPT = "a red circle moves up"


@pytest.fixture(scope="module")
def model(published: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(published))


def num_frames(video: str) -> int:
    with av.open(io.BytesIO(base64.b64decode(video, validate=True))) as container:
        return sum(1 for _ in container.decode(video=0))


def test_equal_publications_have_equal_digests(published: Path, tmp_path: Path) -> None:
    source = published.parent
    again = publish(source / "data", source / "models" / "student", tmp_path / "second")
    assert digest_folder(again) == digest_folder(published, STAGE.volatile)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (again / weights).samefile(source / "models" / "student" / weights)


def test_rows_that_wait_hold_pictures_of_the_models_size(published: Path) -> None:
    """A hundred photographs as they are would take gigabytes."""
    model = _load_pyfunc(str(published))
    request = model._checked(0, {"image": picture(400, 300), "prompt": PROMPT})
    assert request.image.shape == (model.student.bundle.info.height, model.student.bundle.info.width, 3)


def test_a_picture_keeps_its_shape_if_the_model_knows_it(published: Path) -> None:
    model = _load_pyfunc(str(published))
    info = model.student.bundle.info.model_copy(update={"more_sizes": (Size(48, 32), Size(32, 64))})
    bundle = replace(model.student.bundle, info=info)
    upright, lying = (
        replace(model, student=Student(bundle))._checked(0, {"image": picture(*size), "prompt": PROMPT})
        for size in ((300, 400), (400, 180))
    )
    assert (upright.image.shape, lying.image.shape) == ((48, 32, 3), (32, 64, 3))
    assert bundle.generate(upright.image, PROMPT).shape == (9, 48, 32, 3)


def test_rows_of_every_kind_become_videos(model: mlflow.pyfunc.PyFuncModel, image: bytes) -> None:
    text = base64.b64encode(image).decode()
    frame = pd.DataFrame({"image": [image, image], "prompt": [PROMPT, PROMPT], "seconds": [1.5, None], "seed": [1, 2]})
    videos = [row["video"] for row in model.predict(frame)]
    assert [num_frames(video) for video in videos] == [12, 9]
    (one,) = model.predict([{"image": text, "prompt": PROMPT, "seconds": 1.5, "seed": 1}])
    assert one["video"] == videos[0]
    (plain,) = model.predict({"image": text, "prompt": PROMPT})
    assert num_frames(plain["video"]) == 9


@pytest.mark.parametrize(
    "seeds", [[7, None], pd.Series([7, None], dtype="Int64"), pd.Series([7, pd.NA], dtype=object), [7.0, float("nan")]]
)
def test_a_row_without_a_seed_beside_one_with_it_has_seed_0(
    model: mlflow.pyfunc.PyFuncModel, image: bytes, seeds: object
) -> None:
    rows = {"image": [image] * 2, "prompt": [PROMPT] * 2}
    with_seed, without = model.predict(pd.DataFrame({**rows, "seed": seeds}))
    assert [with_seed, without] == model.predict(pd.DataFrame({**rows, "seed": [7, 0]}))
    assert with_seed != without


def test_whole_seconds_need_no_decimal_point(model: mlflow.pyfunc.PyFuncModel, image: bytes) -> None:
    (made,) = model.predict(pd.DataFrame({"image": [image], "prompt": [PROMPT], "seconds": [1]}))
    assert num_frames(made["video"]) == 8


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"seed": 1.5}, "row 1: seed = 1.5: expected a whole number from 0 to 4294967295; change it, or leave it out"),
        ({"seed": "one"}, "row 1: seed = one: expected a whole number"),
        ({"image": "cat.png!"}, "row 1: image = 8 characters: expected bytes, or their base64 text"),
        ({"image": b"no picture"}, "row 1: image = 10 bytes: expected a readable picture"),
        ({"prompt": " "}, "row 1: prompt = (empty)"),
        ({"seconds": 60.0}, "row 1: seconds = 60.0: expected a number from 0.1 to 20"),
    ],
)
def test_bad_rows_are_user_errors(
    model: mlflow.pyfunc.PyFuncModel, image: bytes, row: dict[str, object], message: str
) -> None:
    good = {"image": image, "prompt": PROMPT, "seconds": 1.0, "seed": None}
    with pytest.raises(UserError) as caught:
        model.predict(pd.DataFrame([good, {**good, **row}]))
    assert message in str(caught.value)


def test_the_signature_guards_the_columns(model: mlflow.pyfunc.PyFuncModel, image: bytes) -> None:
    with pytest.raises(MlflowException, match="missing inputs"):
        model.predict(pd.DataFrame({"image": [image]}))


def test_limits_can_be_overridden(published: Path, image: bytes) -> None:
    strict = mlflow.pyfunc.load_model(str(published), model_config={"max_prompt_chars": 5})
    with pytest.raises(UserError, match="21 characters: expected at most 5"):
        strict.predict([{"image": image, "prompt": PROMPT}])
    with pytest.raises(UserError, match=r"max_prompt_chars = 0: .*greater than or equal to 1"):
        mlflow.pyfunc.load_model(str(published), model_config={"max_prompt_chars": 0})


def test_mlflows_own_scoring_server(model: mlflow.pyfunc.PyFuncModel, image: bytes) -> None:
    client = TestClient(scoring_server(model))
    row = {"image": base64.b64encode(image).decode(), "prompt": PROMPT, "seconds": 1.0, "seed": 5}
    answer = client.post("/invocations", json={"dataframe_records": [row]})
    assert answer.status_code == 200, answer.text
    assert num_frames(answer.json()["predictions"][0]["video"]) == 8
    for payload in (
        {"dataframe_records": [{**row, "image": base64.encodebytes(image).decode()}]},  # with line breaks
        {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}},
        {"instances": [row]},
        {"inputs": {name: [value] for name, value in row.items()}},
    ):
        same = client.post("/invocations", json=payload)
        assert same.json() == answer.json(), same.text
    bad = client.post("/invocations", json={"dataframe_records": [{**row, "prompt": ""}]})
    assert bad.status_code == 400
    assert "prompt = (empty)" in bad.text


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server that keeps artifacts itself."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/kept"]
    alone = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes less
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **alone}, stdout=log, stderr=log, start_new_session=True)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE_S)


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("store", ["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def test_a_registered_version_loads_and_stays_intact(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, store: str
) -> None:
    uri = request.getfixturevalue(store)
    if store == "server":
        wait_for(lambda: is_healthy(uri))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracker = Tracker(tmp_path / "home", "tests")
    run = tracker.start_parent("demo", "pipeline", {})
    digest = digest_folder(published, STAGE.volatile)
    ref = ArtifactRef(
        stage="publish", key="k", uri=str(published), digest=digest, run_id=run.run_id, volatile=STAGE.volatile
    )
    tracker.registry.register("tiny", ref, "champion", {})
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    (row,) = model.predict([{"image": picture(), "prompt": PROMPT}])
    assert num_frames(row["video"]) == 9
    assert ref.state() == "intact"
    assert find_model(tmp_path / "home", "models:/tiny@champion") == (published, "models:/tiny@champion (version 1)")
    assert find_model(tmp_path / "home", str(published)) == (published, str(published))
