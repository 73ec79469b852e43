"""The CLIP model: its captions, its loss, its training, its embeddings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from magic141.artifacts.digests import digest_folder
from magic141.data.rows import Rows
from magic141.errors import UserError
from magic141.retrieval import clip
from magic141.retrieval.clip import Captions, ClipEmbedder, build_clip, contrastive_loss
from magic141.retrieval.config import ClipConfig
from magic141.retrieval.pretrained import Preprocessing
from magic141.stage_log import NullLog
from tests.evaluation.artifacts import add_upright_clips


def test_embeddings_are_unit_vectors_and_reload_alike(artifacts: dict[str, Path]) -> None:
    first, second = ClipEmbedder.load(artifacts["clip"]), ClipEmbedder.load(artifacts["clip"])
    texts = first.embed_texts(["a red circle moves up", "a blue square"])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(texts, second.embed_texts(["a red circle moves up", "a blue square"]))
    images = np.random.default_rng(0).integers(0, 255, (3, 40, 32, 3), np.uint8)
    assert first.embed_images(images).shape == (3, 64)


def test_texts_are_as_long_as_the_longest_caption_and_longer_ones_are_cut(artifacts: dict[str, Path]) -> None:
    captions = Captions.of(["a red circle", "a circle", "a red circle"])
    assert captions.tokens.shape == (2, 1 + 3 + 1)  # begin, three words, end
    assert captions.rows.unique(return_inverse=True)[1].tolist() in ([0, 1, 0], [1, 0, 1])
    assert captions.num_cut == 0
    assert Captions.of(["a circle " * 40]).tokens.shape == (1, 77)
    embedder = ClipEmbedder.load(artifacts["clip"])
    longest = "a red circle " * 10
    np.testing.assert_array_equal(embedder.embed_texts([longest]), embedder.embed_texts([f"{longest} and more"]))


def test_captions_that_differ_only_where_they_are_cut_are_one_text() -> None:
    """As negatives of each other they would only teach noise."""
    alike = " ".join(["circle"] * 75)
    captions = Captions.of([f"{alike} left", f"{alike} right", "a circle"])
    assert captions.num_cut == 2
    assert captions.rows[0] == captions.rows[1] != captions.rows[2]
    assert captions.tokens.argmax(1).max() == 76, "which still ends"


def test_equal_captions_are_positives_of_each_other() -> None:
    vectors = torch.eye(2)[[0, 0, 1]]
    scale = torch.tensor(100.0)
    same = (torch.tensor([0, 0, 1])[:, None] == torch.tensor([0, 0, 1])[None]).float()
    assert (
        contrastive_loss(vectors, vectors, scale, same) < contrastive_loss(vectors, vectors, scale, torch.eye(3)) + 1e-6
    )
    assert contrastive_loss(vectors, vectors, scale, same).item() == pytest.approx(2 / 3 * np.log(2), abs=1e-4)


def test_other_weights_under_the_same_path_are_another_artifact(
    tmp_path: Path, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magic141.retrieval.clip.load_pretrained", lambda *_: None)
    weights, found = tmp_path / "w.pt", set()
    for content in ("old", "new"):
        weights.write_text(content)
        config = ClipConfig(kind="pretrained", model="RN50", pretrained=str(weights))
        (tmp_path / content).mkdir()
        build_clip(config, artifacts["data"], tmp_path / content, NullLog(), 0)
        found.add(digest_folder(tmp_path / content))
    assert len(found) == 2


def test_wrong_pretrained_models_are_user_errors(tmp_path: Path, artifacts: dict[str, Path]) -> None:
    unknown = ClipConfig(kind="pretrained", model="NoSuchModel", pretrained="openai")
    with pytest.raises(UserError, match=r"train_clip\.model = NoSuchModel"):
        build_clip(unknown, artifacts["data"], tmp_path, NullLog(), 0)
    config = ClipConfig(kind="pretrained", model="RN50", pretrained="nothing.pt")
    with pytest.raises(UserError, match=r"train_clip\.pretrained = nothing\.pt"):
        build_clip(config, artifacts["data"], tmp_path, NullLog(), 0)


def test_images_of_a_large_corpus_are_made_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (10, 40, 32, 3), dtype=torch.uint8)
    pick, preprocessing = torch.tensor([7, 0, 7]), Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    at_once = clip.TrainingImages(images, preprocessing)
    monkeypatch.setattr(clip, "MAX_CACHED_IMAGES", 9)
    later = clip.TrainingImages(images, preprocessing)
    assert (len(at_once), len(later)) == (10, 10)
    assert later._cached is None
    torch.testing.assert_close(later[pick], at_once[pick])


def test_images_of_several_sizes_are_embedded_each_as_if_alone(artifacts: dict[str, Path]) -> None:
    embedder = clip.ClipEmbedder.load(artifacts["clip"])
    generator = torch.Generator().manual_seed(0)
    lying, upright = (
        torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8, generator=generator) for size in ((32, 48), (48, 32))
    )
    images = Rows([lying[:2], upright, lying[2:]])
    alone = [embedder.embed_images(one[None]) for one in (*lying[:2], *upright, lying[2])]
    np.testing.assert_allclose(embedder.embed_images(images), np.concatenate(alone), atol=1e-5)


def test_the_models_images_are_as_large_as_the_main_size_allows(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """Whichever size comes first in the corpus."""
    data = tmp_path / "data"
    shutil.copytree(artifacts["data"], data)
    add_upright_clips(data, 4)
    lines = (data / "manifest.jsonl").read_text().splitlines(keepends=True)
    (data / "manifest.jsonl").write_text("".join(sorted(lines, key=lambda line: "upright" not in line)))
    (tmp_path / "clip").mkdir()
    build_clip(ClipConfig(num_steps=1, batch_size=16), data, tmp_path / "clip", NullLog(), 0)
    record = json.loads((tmp_path / "clip" / "clip.json").read_text())
    assert record["architecture"]["vision_cfg"]["image_size"] == 32


def test_training_images_may_differ_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    lying, upright = (
        torch.full((2, 32, 48, 3), 10, dtype=torch.uint8),
        torch.full((2, 48, 32, 3), 200, dtype=torch.uint8),
    )
    images, preprocessing = Rows([lying, upright]), Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    at_once = clip.TrainingImages(images, preprocessing)
    monkeypatch.setattr(clip, "MAX_CACHED_IMAGES", 3)
    later, pick = clip.TrainingImages(images, preprocessing), torch.tensor([3, 0])
    torch.testing.assert_close(later[pick], at_once[pick])
    assert (later[pick].mean((1, 2, 3)) * 127.5 + 127.5).round().tolist() == [200, 10]


def test_the_temperature_learns_no_further_than_its_bound(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClipConfig(num_steps=3, batch_size=16)
    scales = []
    for bound in (1.0, clip.MAX_LOGIT_SCALE):
        monkeypatch.setattr(clip, "MAX_LOGIT_SCALE", bound)
        build_clip(config, artifacts["data"], tmp_path, NullLog(), 0)
        scales.append(float(load_file(tmp_path / "model.safetensors")["logit_scale"]))
    held, free = (abs(scale - np.log(1 / 0.07)) for scale in scales)  # weight decay moves it a little all the same
    assert held < 0.1 * free


def test_images_and_texts_count_alike_in_the_loss() -> None:
    images, texts = torch.nn.functional.normalize(
        torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), dim=2
    )
    scale, same = torch.tensor(10.0), torch.eye(4)
    one, other = contrastive_loss(images, texts, scale, same), contrastive_loss(texts, images, scale, same)
    torch.testing.assert_close(one, other)
