"""`magic141 generate`: makes a video file from an image and a prompt with a published model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flows.failures.writable import require_output
from flows.records.models import find_model
from magic141.errors import UserError
from magic141.serving.config import MIN_SECONDS
from magic141.serving.requests import MAX_SEED
from magic141.text_files import replacing

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
    from magic141.data.sizes import Size
    from magic141.data.videos.video import read_image, write_video

    pixels = read_image(image)  # before a model is fetched
    folder = find_model(workspace, model).folder
    from magic141.export import load_bundle
    from magic141.models.device import sampling_device

    bundle = load_bundle(folder, sampling_device())
    for remark in bundle.encoders.remarks(prompt):
        warn(f"--prompt: {remark}")
    frames = bundle.generate(pixels, prompt, seconds, seed)
    with replacing(output) as aside:  # a full disk must not cost a video that was there
        write_video(aside, frames, bundle.info.fps)
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
