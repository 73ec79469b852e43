"""The frozen text and image encoders: tiny ones over the corpus's own words, or those of a HunyuanVideo-I2V folder.

Both kinds use the same transformers classes and the same code. Text tokens are the Llama hidden state two layers before
the last, image tokens the same hidden state at the positions of Llava's image features (in the two-layer tiny model
these are the word embeddings and the projected features themselves); the pooled vector is CLIP's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magic141.models.config import EncoderConfig
from magic141.models.device import sampling_device
from magic141.models.encoder_parts import EncoderParts, link_parts, load_parts, parts_of_checkpoint
from magic141.models.text_embedding import TextEmbedding
from magic141.models.tiny_encoders import build_tiny_parts, words_of

HIDDEN_LAYER = -3  # two layers before the last one
ASPECTS = (
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:"
)


@dataclass(frozen=True)
class Template:
    """Text around a prompt or an image for the language model; the tokens of `before` are cropped afterwards."""

    before: str = ""
    after: str = ""

    @classmethod
    def hunyuan(cls, instruction: str) -> Self:
        """A system turn with `instruction` and the five aspects of HunyuanVideo's training, then the user's turn."""
        system = f"<|start_header_id|>system<|end_header_id|>\n\n{instruction}{ASPECTS}<|eot_id|>"
        return cls(f"{system}<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>")


TEXT_TEMPLATE = Template.hunyuan("Describe the video by detailing the following aspects: ")  # `before` has 95 tokens
IMAGE_TEMPLATE = Template.hunyuan(
    "Describe the video by detailing the following aspects according to the reference image: "
)


@dataclass(frozen=True)
class Calibration:
    """Affine maps, with one value per dimension, that bring the tiny encoders' outputs to about unit variance."""

    text_std: Tensor
    image_mean: Tensor
    image_std: Tensor
    pooled_mean: Tensor
    pooled_std: Tensor

    def pooled(self, raw: Tensor) -> Tensor:
        """Standardises, then scales to unit mean square, so that rare prompts (the empty one) are no outliers."""
        z = (raw - self.pooled_mean) / self.pooled_std
        return z / z.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)


class Encoders:
    """Text and image encoders of either kind; weights are loaded at first use."""

    def __init__(
        self, config: EncoderConfig, load_parts: Callable[[], EncoderParts], calibration: Calibration | None = None
    ) -> None:
        self.config = config
        self._load_parts = load_parts
        self._calibration = calibration
        tiny = config.kind == "tiny"
        self._text_template = Template() if tiny else TEXT_TEMPLATE
        self._image_template = Template() if tiny else IMAGE_TEMPLATE
        self._batch_size = 256 if tiny else 8

    @classmethod
    def fit(cls, captions: Sequence[str], config: EncoderConfig, seed: int, images: Tensor) -> Encoders:
        """Makes encoders for a corpus.

        Args:
            captions: All captions, the vocabulary of kind tiny; kind hunyuan ignores them.
            config: Kind and sizes.
            seed: Seed of the random weights (tiny).
            images: uint8 [B, H, W, 3] frames of the corpus on which to calibrate image tokens (tiny).
        """
        if config.kind == "hunyuan":
            return cls(config, parts_of_checkpoint(Path(config.path or ""), sampling_device()))
        longest = max((len(words_of(caption)) for caption in captions), default=1) + 1  # one for the end of text
        config = config.model_copy(update={"max_text_tokens": min(config.max_text_tokens, max(longest, 2))})
        parts = build_tiny_parts(captions, config.width, seed)
        raw = cls(config.model_copy(update={"image_tokens": True}), lambda: parts)
        return cls(config, lambda: parts, _calibrate(raw, sorted(set(captions)), images))

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Encoders:
        """Opens a saved folder; a checkpoint's networks will be on `device`, tiny ones on the CPU."""
        config = EncoderConfig.model_validate_json((folder / "encoders.json").read_text())
        if config.kind == "hunyuan":
            return cls(config.model_copy(update={"path": str(folder)}), parts_of_checkpoint(folder, device))
        calibration = Calibration(**load_file(folder / "calibration.safetensors"))
        return cls(config, lambda: load_parts(folder, torch.device("cpu"), torch.float32), calibration)

    def save(self, folder: Path) -> None:
        """Writes the folder that `load` opens, laid out like HunyuanVideo-I2V's; a checkpoint's parts are linked."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.model_copy(update={"path": None})
        (folder / "encoders.json").write_text(config.model_dump_json(indent=2) + "\n")
        if self._calibration is None:
            link_parts(Path(self.config.path or ""), folder)
            return
        self.parts.save(folder)
        save_file(vars(self._calibration), folder / "calibration.safetensors")

    @cached_property
    def parts(self) -> EncoderParts:
        """Models, tokenizers and image processor."""
        return self._load_parts()

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> TextEmbedding:
        """Encodes prompts (each distinct one once); "" is the null prompt."""
        distinct = list(dict.fromkeys(prompts))
        batches = [self._encode_distinct(batch) for batch in _batches(distinct, self._batch_size)]
        tokens, mask, pooled = (torch.cat(part) for part in zip(*batches, strict=True))
        if self._calibration is not None:
            tokens, pooled = tokens / self._calibration.text_std, self._calibration.pooled(pooled)
        row = {prompt: index for index, prompt in enumerate(distinct)}
        return TextEmbedding(tokens * mask[..., None], mask, pooled).select([row[prompt] for prompt in prompts])

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Encodes uint8 [B, H, W, 3] to [B, Li, D]; Li is 0 without image tokens or without a vision branch."""
        text_encoder = self.parts.text_encoder
        if text_encoder.config.model_type != "llava" or not self.config.image_tokens:
            return torch.zeros(len(images), 0, text_encoder.config.get_text_config().hidden_size)
        tokens = torch.cat([self._encode_images(batch) for batch in images.split(self._batch_size)])
        if self._calibration is None:
            return tokens
        return (tokens - self._calibration.image_mean) / self._calibration.image_std

    def remarks(self, prompt: str) -> list[str]:
        """Notes on what the encoders ignore: a too long prompt's end, and words that no caption has (kind tiny)."""
        tokenizer, room = self.parts.tokenizer, self.config.max_text_tokens - 1  # the end-of-text token takes one
        is_tiny, found = self.config.kind == "tiny", []
        if len(tokenizer(prompt, add_special_tokens=False).input_ids) > room:
            unit = "words and punctuation marks" if is_tiny else "tokens of the language model"
            found.append(f"only its first {room} {unit} are read")
        words = words_of(prompt) if is_tiny else []  # a checkpoint's tokenizer has a token for everything
        if unknown := [word for word in words if tokenizer.convert_tokens_to_ids(word) == tokenizer.unk_token_id]:
            found.append(f"words that the text encoder has never seen: {', '.join(unknown)}")
        return found

    def _encode_distinct(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Raw tokens [B, Lt, D], mask [B, Lt] and pooled [B, P]."""
        parts, template = self.parts, self._text_template
        crop = len(self._prefix_ids(template))
        inputs = parts.tokenizer(
            [template.before + prompt + template.after for prompt in prompts],
            max_length=crop + self.config.max_text_tokens,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        is_llava = parts.text_encoder.config.model_type == "llava"
        language = parts.text_encoder.model.language_model if is_llava else parts.text_encoder
        ids, mask = inputs.input_ids.to(language.device), inputs.attention_mask.to(language.device)
        output = language(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        tokens = output.hidden_states[HIDDEN_LAYER][:, crop:]
        return tokens.float().cpu(), mask[:, crop:].bool().cpu(), self._pool(prompts)

    def _pool(self, prompts: Sequence[str]) -> Tensor:
        clip, tokenizer = self.parts.text_encoder_2, self.parts.tokenizer_2
        inputs = tokenizer(
            list(prompts),
            max_length=clip.config.max_position_embeddings,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        output = clip(inputs.input_ids.to(clip.device)).pooler_output
        return torch.as_tensor(output).float().cpu()

    def _encode_images(self, images: Tensor) -> Tensor:
        """Raw image tokens [B, Li, D], of which every `image_token_stride`-th is kept."""
        parts = self.parts
        llava = parts.text_encoder
        pixels = parts.image_processor(images.permute(0, 3, 1, 2), return_tensors="pt").pixel_values
        prefix = self._prefix_ids(self._image_template)
        suffix = parts.tokenizer(self._image_template.after, add_special_tokens=False).input_ids
        num_tokens = llava.config.image_seq_length
        row = [*prefix, *[llava.config.image_token_index] * num_tokens, *suffix]
        output = llava.model(  # without the language head
            input_ids=torch.tensor([row] * len(images), device=llava.device),
            pixel_values=pixels.to(llava.device, llava.dtype),
            output_hidden_states=True,
            use_cache=False,
        )
        tokens = output.hidden_states[HIDDEN_LAYER][:, len(prefix) : len(prefix) + num_tokens]
        return torch.as_tensor(tokens[:, :: self.config.image_token_stride]).float().cpu()

    def _prefix_ids(self, template: Template) -> list[int]:
        """Token ids before the prompt: with a begin-of-text token if the tokenizer adds one, without an end token."""
        if not template.before:
            return []
        ids: list[int] = self.parts.tokenizer(template.before).input_ids
        return ids[:-1] if ids[-1] == self.parts.tokenizer.eos_token_id else ids


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@torch.no_grad()
def _calibrate(raw: Encoders, captions: Sequence[str], images: Tensor) -> Calibration:
    """Measures mean and standard deviation of the raw encoders' outputs over the corpus."""
    text = raw.encode_text([*captions, ""])
    image = raw.encode_image(images).flatten(0, 1)
    return Calibration(
        text_std=text.tokens[text.mask].std().clamp_min(1e-6).reshape(1),
        image_mean=image.mean(0),
        image_std=image.std(0).clamp_min(1e-6),
        pooled_mean=text.pooled.mean(0),
        pooled_std=text.pooled.std(0).clamp_min(1e-6),
    )
