from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration

from magic141.models.caption_lengths import remarks_on_cut_captions
from magic141.models.config import EncoderConfig
from tests.models.tiny import tiny_checkpoint

LONG, LONGER = "a red ball rolls " * 3, "a red ball rolls " * 20  # 12 and 80 words


def test_cut_captions_are_counted_once_each() -> None:
    remarks = remarks_on_cut_captions(["a ball", LONG, LONG, LONGER], EncoderConfig(max_text_tokens=12))
    assert remarks == [
        "2 of 3 captions are cut after 11 words and punctuation marks: raise data.encoder.max_text_tokens to 81 to "
        "keep them whole"
    ]
    assert remarks_on_cut_captions([LONG], EncoderConfig(max_text_tokens=13)) == []


def test_real_tokenizers_count_for_real_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint(tmp_path, [LONG])
    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", None)  # 16 GB only to count
    config = EncoderConfig(kind="hunyuan", path=str(checkpoint), max_text_tokens=12)
    language, clip = remarks_on_cut_captions(["a ball", LONG, LONG, LONGER], config)
    assert language.startswith("2 of 3 captions are cut after 11 tokens of the language model, of up to 80: ")
    assert clip.startswith("1 of 3 captions are cut after 75 tokens of CLIP")
    assert remarks_on_cut_captions(["a ball", LONG], config.model_copy(update={"max_text_tokens": 13})) == []
