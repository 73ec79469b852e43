"""How much of the captions the text encoders read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from magic141.models.config import EncoderConfig
from magic141.models.tiny_encoders import CLIP_POSITIONS, words_of

BATCH = 10_000  # captions whose tokens are in memory at once


def remarks_on_cut_captions(captions: Sequence[str], config: EncoderConfig) -> list[str]:
    """How many of the distinct captions are longer than the encoders read, and what helps; nothing if none is.

    Args:
        captions: of the corpus.
        config: whose tokenizers count; the models are not loaded.
    """
    distinct = sorted(set(captions))
    return list((_tiny if config.kind == "tiny" else _hunyuan)(distinct, config))


def _tiny(captions: Sequence[str], config: EncoderConfig) -> Iterator[str]:
    room = config.max_text_tokens - 1  # the end-of-text token takes one
    longer = [length for length in (len(words_of(caption)) for caption in captions) if length > room]
    if longer:
        yield (
            f"{len(longer)} of {len(captions)} captions are cut after {room} words and punctuation marks: "
            f"raise data.encoder.max_text_tokens to {max(longer) + 1} to keep them whole"
        )


def _hunyuan(captions: Sequence[str], config: EncoderConfig) -> Iterator[str]:
    room = config.max_text_tokens - 1  # the template's end of turn takes one
    lengths = _count_tokens(captions, Path(config.path or "") / "tokenizer")
    if longer := [length for length in lengths if length > room]:
        yield (
            f"{len(longer)} of {len(captions)} captions are cut after {room} tokens of the language model, of up to "
            f"{max(longer)}: shorten them, or raise data.encoder.max_text_tokens (HunyuanVideo was trained with 256)"
        )
    room = CLIP_POSITIONS - 2  # begin and end of the text
    lengths = _count_tokens(captions, Path(config.path or "") / "tokenizer_2")
    if longer := [length for length in lengths if length > room]:
        yield (
            f"{len(longer)} of {len(captions)} captions are cut after {room} tokens of CLIP, whose pooled vector knows "
            "only what comes first; the language model reads on: put what matters most first"
        )


def _count_tokens(texts: Sequence[str], tokenizer: Path) -> list[int]:
    """Tokens of each text, without those that are put around it."""
    from transformers import AutoTokenizer

    tokenize = AutoTokenizer.from_pretrained(tokenizer)
    parts = (list(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH))
    return [len(ids) for part in parts for ids in tokenize(part, add_special_tokens=False, verbose=False).input_ids]
