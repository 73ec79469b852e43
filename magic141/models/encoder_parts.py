"""Saves, checks and loads the text and image encoders of a HunyuanVideo-I2V folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from magic141.artifacts.digests import digest_source
from magic141.errors import UserError

LINKED_FILE = "linked.json"  # beside links to a checkpoint's parts: name -> digest


@dataclass(frozen=True)
class EncoderParts:
    """The five parts of HunyuanVideo-I2V's text and image encoders, named like its subfolders."""

    text_encoder: Any  # LlavaForConditionalGeneration, or LlamaModel (no image tokens)
    tokenizer: Any
    text_encoder_2: Any  # CLIPTextModel
    tokenizer_2: Any
    image_processor: Any

    def save(self, folder: Path) -> None:
        """Writes one subfolder per part."""
        for part in fields(self):
            getattr(self, part.name).save_pretrained(folder / part.name)


def link_parts(checkpoint: Path, folder: Path) -> None:
    """Links a checkpoint's subfolders into `folder` instead of copying 16 GB, and notes what is in them."""
    for part in fields(EncoderParts):
        (folder / part.name).symlink_to((checkpoint / part.name).resolve())
    (folder / LINKED_FILE).write_text(json.dumps(_linked(folder), indent=2) + "\n")


def _linked(folder: Path) -> dict[str, str]:
    """Digest of every part that is a link: an artifact's own digest does not reach behind it."""
    links = (folder / part.name for part in fields(EncoderParts) if (folder / part.name).is_symlink())
    return {link.name: digest_source(link.resolve()) for link in links}


def _require_same(folder: Path) -> None:
    noted = json.loads((folder / LINKED_FILE).read_text()) if (folder / LINKED_FILE).is_file() else {}
    changed = [name for name, digest in _linked(folder).items() if digest != noted.get(name, digest)]
    if changed:
        place = (folder / changed[0]).resolve().parent
        raise UserError(
            f"data.encoder.path = {place}: {', '.join(changed)} changed since the data was encoded; expected the same "
            "files (names, sizes, times); put them back, or give --refresh prepare_data"
        )


def parts_of_checkpoint(folder: Path, device: torch.device) -> Callable[[], EncoderParts]:
    """Checks a checkpoint's folder and returns its loader: bfloat16 on a GPU, float32 on the CPU.

    Raises:
        UserError: if a part is missing, or is not what it was when it was linked.
    """
    for part in fields(EncoderParts):
        place = (folder / part.name).resolve()  # of a broken link, the error names the missing target
        if not place.is_dir():
            raise UserError(
                f"data.encoder.path = {place.parent}: has no subfolder {place.name}; expected a diffusers "
                "HunyuanVideo-I2V folder; put it there"
            )
    _require_same(folder)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return lambda: load_parts(folder, device, dtype)


def load_parts(folder: Path, device: torch.device, dtype: torch.dtype) -> EncoderParts:
    """Loads all parts; the text encoder is a Llava or, without image tokens, a Llama."""
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPTextModel,
        LlamaModel,
        LlavaForConditionalGeneration,
    )

    is_llava = AutoConfig.from_pretrained(folder / "text_encoder").model_type == "llava"
    classes: tuple[Any, ...] = (LlavaForConditionalGeneration if is_llava else LlamaModel, CLIPTextModel)
    text_encoder, text_encoder_2 = (
        model.from_pretrained(folder / name, dtype=dtype).eval().requires_grad_(False).to(device)
        for model, name in zip(classes, ("text_encoder", "text_encoder_2"), strict=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", padding_side="right")
    tokenizer_2 = AutoTokenizer.from_pretrained(folder / "tokenizer_2")
    processor = CLIPImageProcessor.from_pretrained(folder / "image_processor")
    return EncoderParts(text_encoder, tokenizer, text_encoder_2, tokenizer_2, processor)
