"""`magic141 generate`: makes a video file from an image and a prompt with a published model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.failures.writable import require_output
from flows.records.commands import command_again
from magic141.errors import UserError
from magic141.serving.config import MIN_SECONDS
from magic141.serving.requests import MAX_SEED
from magic141.text_files import name_aside

if TYPE_CHECKING:
    from magic141.tracking import Run, Tracker

MAX_SECONDS = 86_400


def animate(
    workspace: Path,
    model: str,
    image: Path,
    prompt: str,
    output: Path,
    seconds: float | None,
    seed: int,
    warn: Callable[[str], None],
) -> str:
    """Writes the video and returns its description; `warn` gets notes on what of the prompt is not understood."""
    _refuse_mistakes(image, prompt, output, seconds, seed)
    folder = find_model(workspace, model)

    from magic141.data.sizes import Size
    from magic141.data.videos.video import read_image, write_video

    pixels = read_image(image)  # before the next import, which takes seconds
    from magic141.export import load_bundle
    from magic141.models.device import sampling_device

    bundle = load_bundle(folder, sampling_device())
    for remark in bundle.encoders.remarks(prompt):
        warn(f"--prompt: {remark}")
    frames = bundle.generate(pixels, prompt, seconds, seed)
    aside = name_aside(output)  # a full disk must not cost a video that was there
    try:
        write_video(aside, frames, bundle.info.fps)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)
    size = Size(*frames.shape[1:3])
    return f"{len(frames)} frames of {size} (height x width) at {bundle.info.fps:g} per second"


def _refuse_mistakes(image: Path, prompt: str, output: Path, seconds: float | None, seed: int) -> None:
    if not prompt.strip():
        raise UserError("--prompt is empty: expected a sentence that says what happens in the video")
    if not image.is_file():
        what = "is a folder" if image.is_dir() else "no such file"
        raise UserError(f"--image {image}: {what}; give a PNG, JPEG or WebP image")
    if seconds is not None and not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise UserError(f"--seconds {seconds:g}: expected {MIN_SECONDS} to {MAX_SECONDS}; leave it out for one window")
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"--seed {seed}: expected a whole number from 0 to {MAX_SEED}; leave it out for 0")
    if output.suffix != ".mp4":
        raise UserError(f"--output {output}: expected a name that ends in .mp4")
    require_output(output)


def pinned(workspace: Path, model: str) -> str:
    """The name of a model, for `models:/NAME@ALIAS` with the version that it means now."""
    if not model.startswith("models:/") or Path(model).is_dir():
        return model
    from magic141.tracking import open_store

    return f"{model} (version {open_store(workspace).registry.version(model)[1].version})"


def _way_to_a_model(run: Run, workspace: Path) -> str:
    """What to give instead of a run without a model: an evaluation only judges that of another run."""
    from magic141.tracking.tags import EVALUATION, TAG_KIND, TAG_ORIGIN

    if run.data.tags.get(TAG_KIND) == EVALUATION:
        return f"it judged what run {run.data.tags[TAG_ORIGIN]} made; give that"
    return f"finish it with `{command_again(run, workspace)}`"


def _run_of(tracker: Tracker, model: str) -> Run:
    """The run that `--model` names, which is neither a folder nor a registry's URI."""
    try:
        return tracker.pipeline_run(model)
    except UserError as error:
        raise UserError(f"--model {model}: no such folder, no models:/NAME@ALIAS, and {error}") from None


def find_model(workspace: Path, model: str) -> Path:
    """The model folder that a path, a registry URI or a run id refers to; fetched from a server if need be.

    Raises:
        UserError: if it refers to nothing, or to nothing that still exists.
    """
    if not model:
        raise UserError("--model: empty; expected a folder, models:/NAME@ALIAS, models:/NAME/VERSION or a run id")
    if Path(model).is_dir():
        return Path(model)
    from magic141.tracking import local_folder, open_store

    try:
        tracker = open_store(workspace)
    except UserError as error:
        raise UserError(f"--model {model}: no such folder, and {error}") from None
    if model.startswith("models:/"):
        ref = tracker.registry.resolve(model)
    else:
        run = _run_of(tracker, model)
        found = tracker.artifacts_of(run).get("publish")
        if found is None:
            raise UserError(f"--model {model}: that run has published nothing; {_way_to_a_model(run, workspace)}")
        ref = found
    try:
        return local_folder(tracker, ref)
    except UserError as error:
        raise UserError(f"--model {model}: {error}") from error
