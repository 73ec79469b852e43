"""Checks, from their config.json, that the transformers which training starts from fit the pipeline's config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from magic141.config.pipeline import PipelineConfig


class Size(NamedTuple):
    """A field of a base's config.json, the value that the pipeline's config implies (None: unknown), and its field."""

    name: str
    expected: Any
    field: str


def misfits(config: PipelineConfig) -> Iterator[str]:
    """Yields a line for everything in an existing base on which its training or use would fail."""
    for section in ("pretrain_t2v", "pretrain_i2v"):
        base = getattr(config, section).base
        if base is None or not Path(base).is_dir():
            continue
        found, head = _read(Path(base) / "config.json"), f"{section}.base = {base}"
        if not found:
            yield f"{head}: no readable config.json in it; expected a diffusers transformer folder; give that folder"
            continue
        yield from (f"{head}: {line}" for line in (*_inputs(found, section, config), *_sizes(found, config)))


def _inputs(found: dict[str, Any], section: str, config: PipelineConfig) -> Iterator[str]:
    """Checks the input channels: T2V takes noisy latents, I2V also the known ones and their mask."""
    kind, out = found.get("image_condition_type") or "null", found.get("out_channels", 16)
    channels = found.get("in_channels", 16)
    text_to_video, image_to_video = ("null", out), ("latent_concat", 2 * out + 1)
    allowed = [text_to_video] if section == "pretrain_t2v" else [text_to_video, image_to_video]
    if section == "pretrain_i2v" and config.pretrain_i2v.num_steps == 0:
        allowed = [image_to_video]  # used as it is, it has to be the teacher
    if (kind, channels) not in allowed:
        expected = " or ".join(f"{name} with {number}" for name, number in allowed)
        yield (
            f"image_condition_type = {kind} with {channels} input channels; expected {expected}; use HunyuanVideo as "
            f"pretrain_t2v.base, or an image-to-video model of {2 * out + 1} input channels as pretrain_i2v.base"
        )


def _sizes(found: dict[str, Any], config: PipelineConfig) -> Iterator[str]:
    for name, expected, field in (*_model(config), *_widths(config)):
        if expected is not None and found.get(name, expected) != expected:
            yield f"{name} = {found[name]}; expected {expected} by {field}; correct that one, or use another base"


def _model(config: PipelineConfig) -> Iterator[Size]:
    for name in ("patch_size", "patch_size_t", "rope_axes_dim"):
        value = getattr(config.model, name)
        yield Size(name, list(value) if isinstance(value, tuple) else value, f"model.{name}")


def _widths(config: PipelineConfig) -> Iterator[Size]:
    """Widths that codec and encoders produce, from the config (tiny ones) or the checkpoints' own config.json."""
    codec, encoder = config.data.codec, config.data.encoder
    if codec.kind == "pca":
        yield Size("out_channels", codec.num_channels, "data.codec.num_channels")
    else:
        yield Size("out_channels", _of(codec.path, "vae", "latent_channels"), "data.codec.path")
    for name, part in (("text_embed_dim", "text_encoder"), ("pooled_projection_dim", "text_encoder_2")):
        if encoder.kind == "tiny":
            yield Size(name, encoder.width, "data.encoder.width")
        else:
            yield Size(name, _of(encoder.path, part, "hidden_size"), "data.encoder.path")


def _of(checkpoint: str | None, part: str, name: str) -> Any:
    """A value from a part's config.json, or from the language model's section in it; None if it is not there."""
    values = _read(Path(checkpoint or "") / part / "config.json")
    return {**values, **(values.get("text_config") or {})}.get(name)


def _read(file: Path) -> dict[str, Any]:
    """A JSON file's fields; empty if it is not there or not JSON."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
