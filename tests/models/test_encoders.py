from __future__ import annotations

import itertools
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from magic141.artifacts.digests import digest_folder
from magic141.data.shapes import AXES, COLOURS, DIRECTIONS, SHAPES
from magic141.errors import UserError
from magic141.models.config import EncoderConfig
from magic141.models.encoders import Encoders
from tests.models.tiny import fit_encoders, tiny_checkpoint

CPU = torch.device("cpu")
CAPTIONS = [
    f"a {colour} {shape} moves {motion}"
    for colour, shape, motion in itertools.product(COLOURS, SHAPES, (*DIRECTIONS, *AXES))
]


@pytest.fixture(scope="module")
def tiny() -> Encoders:
    return fit_encoders(CAPTIONS, EncoderConfig(), seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("hunyuan"), CAPTIONS)


def random_images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def test_shapes_mask_and_scale(tiny: Encoders) -> None:
    text = tiny.encode_text(CAPTIONS)
    assert text.tokens.shape == (len(CAPTIONS), 9, 64)  # the longest caption, and its end
    assert text.pooled.shape == (len(CAPTIONS), 64)
    assert text.mask.dtype == torch.bool
    lengths = text.mask.sum(1)
    assert torch.equal(text.mask, torch.arange(9) < lengths[:, None])  # valid tokens first
    assert lengths.min() == 6
    assert lengths.max() == 9
    assert not text.tokens[~text.mask].any()
    for part in (text.tokens[text.mask], text.pooled):
        assert 0.8 < part.std() < 1.2
    image = tiny.encode_image(random_images(16))
    assert image.shape == (16, 4, 64)
    assert 0.8 < image.std() < 1.2


def test_captions_are_far_apart(tiny: Encoders) -> None:
    pooled = tiny.encode_text(CAPTIONS).pooled
    distances = torch.cdist(pooled, pooled) / pooled.norm(dim=1).mean()
    assert distances.fill_diagonal_(9).min() > 0.15


def test_every_attribute_can_be_read_linearly_from_the_pooled_vector(tiny: Encoders) -> None:
    pooled = torch.nn.functional.pad(tiny.encode_text(CAPTIONS).pooled, (0, 1), value=1.0)
    attributes: tuple[Callable[[str], str], ...] = (
        lambda c: c.split()[1],
        lambda c: c.split()[2],
        lambda c: c.split("moves ")[1],
    )
    for attribute in attributes:
        values = sorted({attribute(caption) for caption in CAPTIONS})
        target = torch.tensor([values.index(attribute(caption)) for caption in CAPTIONS])
        weights = torch.linalg.lstsq(pooled, torch.nn.functional.one_hot(target).float()).solution
        assert torch.equal((pooled @ weights).argmax(1), target)


def test_null_prompt_is_valid_and_no_outlier(tiny: Encoders) -> None:
    null = tiny.encode_text([""])
    assert null.mask.sum() == 1
    assert null.mask[0, 0]
    assert null.pooled.square().mean() == pytest.approx(1.0, abs=1e-3)
    assert len(null.expand(5)) == 5


def test_remarks_name_what_is_not_understood(tiny: Encoders) -> None:
    assert tiny.remarks(CAPTIONS[0]) == []
    assert tiny.remarks("A purple Circle moves, left") == [
        "words that the text encoder has never seen: purple, ,",
    ]
    assert tiny.encode_text(["a purple zebra"]).mask.sum() == 4
    assert "words and punctuation marks are read" in tiny.remarks(f"{CAPTIONS[0]} {CAPTIONS[0]}")[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("कुत्ता बाईं ओर दौड़ता है", "बिल्ली दाईं ओर कूदती है"),
        ("كَلْب يجري", "قِطّة تقفز"),
        (unicodedata.normalize("NFD", "ein Mädchen läuft"), unicodedata.normalize("NFD", "ein Käfer läuft")),
        ("👩‍👩‍👧 family", "👨‍👩‍👧 family"),
    ],
    ids=["Hindi", "vocalised Arabic", "decomposed accents", "joined emoji"],
)
def test_words_of_any_script_are_known_and_told_apart(one: str, other: str) -> None:
    """Combining marks belong to words for some splitters, and not for others."""
    encoders = fit_encoders([one, other], EncoderConfig(), 0)
    text = encoders.encode_text([one, other])
    assert (text.pooled[0] - text.pooled[1]).abs().max() > 0.1
    assert encoders.remarks(unicodedata.normalize("NFC", one)) == []


def test_text_is_as_long_as_the_longest_caption_and_its_end() -> None:
    short = fit_encoders(["a cat", "one two three four"], EncoderConfig(), 0)
    assert short.encode_text(["a cat"]).tokens.shape[1] == 5
    cut = fit_encoders(["one two three four"], EncoderConfig(max_text_tokens=3), 0)
    assert cut.encode_text(["one two three four"]).tokens.shape[1] == 3


def test_images_differ_and_any_size_is_taken(tiny: Encoders) -> None:
    tokens = tiny.encode_image(random_images(2, 40, 64))
    assert tokens.shape == (2, 4, 64)
    assert (tokens[0] - tokens[1]).norm() > 0.1 * tokens[0].norm()


def test_without_image_tokens_only_those_are_missing(tiny: Encoders, tmp_path: Path) -> None:
    fit_encoders(CAPTIONS, EncoderConfig(image_tokens=False), seed=0).save(tmp_path)
    without = Encoders.load(tmp_path, CPU)
    assert without.encode_image(random_images(3)).shape == (3, 0, 64)
    assert torch.equal(without.encode_text(CAPTIONS).tokens, tiny.encode_text(CAPTIONS).tokens)


def test_saved_encoders_load_equal(tiny: Encoders, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    loaded = Encoders.load(tmp_path, CPU)
    expected, actual = tiny.encode_text(CAPTIONS[:3]), loaded.encode_text(CAPTIONS[:3])
    for name in ("tokens", "mask", "pooled"):
        assert torch.equal(getattr(expected, name), getattr(actual, name))
    assert torch.equal(tiny.encode_image(random_images(2)), loaded.encode_image(random_images(2)))
    assert "zebra" in loaded.remarks("a zebra")[0]


def test_the_seed_decides_the_weights(tiny: Encoders) -> None:
    same, other = (fit_encoders(CAPTIONS, EncoderConfig(), seed) for seed in (0, 1))
    expected = tiny.encode_text(CAPTIONS[:2]).pooled
    assert torch.equal(same.encode_text(CAPTIONS[:2]).pooled, expected)
    assert not torch.allclose(other.encode_text(CAPTIONS[:2]).pooled, expected)


def test_checkpoint_text_is_cropped_to_the_prompt(checkpoint: Path, tmp_path: Path) -> None:
    config = EncoderConfig(kind="hunyuan", path=str(checkpoint), max_text_tokens=12)
    fit_encoders([], config, seed=0).save(tmp_path)
    encoders = Encoders.load(tmp_path, CPU)
    text = encoders.encode_text(["a red circle moves left", "a circle"])
    assert text.tokens.shape == (2, 12, 32)
    assert text.pooled.shape == (2, 32)
    embedding = encoders.parts.text_encoder.get_input_embeddings()
    words = encoders.parts.tokenizer("a red circle moves left", add_special_tokens=False, return_tensors="pt").input_ids
    # two layers before the last of a two-layer model: the word embeddings, here of the prompt and not of the template
    torch.testing.assert_close(text.tokens[0, :5], embedding(words.to(embedding.weight.device))[0].float().cpu())
    assert text.mask[0].sum() - text.mask[1].sum() == 3
    assert encoders.remarks("zebra") == []
    assert encoders.remarks("a circle " * 6) == ["only its first 11 tokens of the language model are read"]


def test_prompts_are_not_encoded_by_another_checkpoint_than_the_data(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "own")
    fit_encoders(CAPTIONS, EncoderConfig(kind="hunyuan", path=str(tmp_path / "own")), 0).save(tmp_path / "saved")
    Encoders.load(tmp_path / "saved", CPU)
    config = tmp_path / "own" / "text_encoder_2" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(UserError, match=f"path = {tmp_path}/own: text_encoder_2 changed since the data was encoded; "):
        Encoders.load(tmp_path / "saved", CPU)


def test_saved_encoders_of_a_checkpoint_are_links_and_equal_wherever_it_lies(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    for path in (checkpoint, tmp_path / "copy"):
        fit_encoders([], EncoderConfig(kind="hunyuan", path=str(path)), 0).save(path / "saved")
    first, second = checkpoint / "saved", tmp_path / "copy" / "saved"
    assert digest_folder(first) == digest_folder(second)
    assert Encoders.load(first, CPU).encode_text(["a circle"]).tokens.shape[2] == 32
    shutil.rmtree(tmp_path / "copy" / "tokenizer")
    with pytest.raises(UserError, match=f"data.encoder.path = {tmp_path}/copy: has no subfolder tokenizer"):
        Encoders.load(second, CPU)


def test_checkpoint_image_tokens_are_the_projected_features(checkpoint: Path) -> None:
    config = EncoderConfig(kind="hunyuan", path=str(checkpoint), image_token_stride=4)
    encoders = fit_encoders([], config, seed=0)
    images = random_images(2)
    tokens = encoders.encode_image(images)
    parts = encoders.parts
    pixels = parts.image_processor(images.permute(0, 3, 1, 2), return_tensors="pt").pixel_values
    pixels = pixels.to(parts.text_encoder.device)
    features = torch.stack(parts.text_encoder.get_image_features(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(tokens, features[:, ::4].float().cpu())


def test_plain_llama_gives_no_image_tokens(checkpoint: Path, tmp_path: Path) -> None:
    source = fit_encoders([], EncoderConfig(kind="hunyuan", path=str(checkpoint)), seed=0)
    source.parts.save(tmp_path)
    source.parts.text_encoder.model.language_model.save_pretrained(tmp_path / "text_encoder")
    plain = fit_encoders([], EncoderConfig(kind="hunyuan", path=str(tmp_path)), seed=0)
    assert plain.encode_image(random_images(3)).shape == (3, 0, 32)
    torch.testing.assert_close(plain.encode_text(["a circle"]).tokens, source.encode_text(["a circle"]).tokens)


def test_checkpoint_folder_is_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no subfolder text_encoder"):
        fit_encoders([], EncoderConfig(kind="hunyuan", path=str(tmp_path)), seed=0)
