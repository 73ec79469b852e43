"""Two small stages, the second on the first's artifact, and what a run of them printed."""

from __future__ import annotations

import io
import time

from tasks.stage import Stage, StageCall, StageContext

CODE = ("magic141.frozen",)


def write_seed(call: StageCall) -> None:
    (call.out / "data.txt").write_text(f"{call.config.data.num_frames}")
    (call.out / "timing.json").write_text(f"{time.time()}")


def copy_upper(call: StageCall) -> None:
    call.log.metrics({"loss": 0.5}, 1)
    call.log.summary({"accuracy": 1, "engine": "plain"})
    call.log.note("copied")
    with call.log.progress(1, "file") as advance:
        advance(1)
    (call.out / "copy.txt").write_text((call.inputs["first"] / "data.txt").read_text())


FIRST = Stage("first", CODE, lambda c: {"data": c.data}, write_seed, volatile=("timing.json",))
SECOND = Stage("second", CODE, lambda c: {"model": c.model}, copy_upper, inputs=("first",), model_type="copy")


def printed(context: StageContext) -> str:
    file = context.console.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()
