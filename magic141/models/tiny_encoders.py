"""Tiny Llava and CLIP text models with random weights, over the corpus's own words.

They are the classes that the 13B configuration loads, in the folder layout of a HunyuanVideo-I2V checkpoint. Random
weights suffice for a small world: words get nearly orthogonal embeddings, captions distinct pooled vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from magic141.models.encoder_parts import EncoderParts

disable_progress_bar()  # that of loading and saving weights: stages show their own

# [EOS] must not have id 2: with that, CLIPTextModel pools at the largest id instead, to support an old checkpoint's bug
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "<image>", "[EOS]")
EOS = SPECIAL_TOKENS.index("[EOS]")
IMAGE_SIZE = 32
PATCH_SIZE = 8
NUM_LAYERS = 2
MAX_WORDS = 8192  # rarer words become [UNK]
CLIP_POSITIONS = 77
_NORMALIZE, _SPLIT = Normalizers([NFC(), Lowercase()]), Whitespace()


def words_of(text: str) -> list[str]:
    """Lower-cased words and runs of punctuation, as the tiny tokenizer splits them."""
    return [word for word, _ in _SPLIT.pre_tokenize_str(_NORMALIZE.normalize_str(text))]


def build_tiny_parts(captions: Sequence[str], width: int, seed: int) -> EncoderParts:
    """Builds the parts with random weights drawn from `seed`; `width` is the hidden width of all of them."""
    tokenizer = _build_tokenizer(captions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llava = LlavaForConditionalGeneration(_llava_config(width, len(tokenizer)))
        clip = CLIPTextModel(_clip_config(width, len(tokenizer)))
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False)
    return EncoderParts(llava.eval(), tokenizer, clip.eval(), tokenizer, processor)


def _build_tokenizer(captions: Sequence[str]) -> PreTrainedTokenizerFast:
    counts = Counter(word for caption in captions for word in words_of(caption))
    words = sorted(sorted(counts), key=lambda word: -counts[word])[:MAX_WORDS]
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *words))}
    core = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = _NORMALIZE
    core.pre_tokenizer = _SPLIT
    core.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", vocabulary["[EOS]"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", padding_side="right"
    )


def _blocks(width: int) -> dict[str, int]:
    heads = max(1, width // 16)
    while width % heads or (width // heads) % 2:  # rotary embeddings need an even head width
        heads -= 1
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": heads,
    }


def _llava_config(width: int, num_tokens: int) -> LlavaConfig:
    vision = {
        "model_type": "clip_vision_model",
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": width,
        **_blocks(width),
    }
    text = {"model_type": "llama", "vocab_size": num_tokens, "pad_token_id": 0, "eos_token_id": EOS, **_blocks(width)}
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL_TOKENS.index("<image>"),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-2,
        pad_token_id=0,
    )


def _clip_config(width: int, num_tokens: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=num_tokens,
        max_position_embeddings=CLIP_POSITIONS,
        projection_dim=width,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=EOS,
        **_blocks(width),
    )
