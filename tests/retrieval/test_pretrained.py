"""CLIP models that others have trained: their preprocessing and their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip import pretrained as registry

from magic141.artifacts.digests import digest_folder
from magic141.config import load_config
from magic141.errors import UserError
from magic141.retrieval.clip import ClipEmbedder, build_clip
from magic141.retrieval.config import ClipConfig
from magic141.retrieval.pretrained import Preprocessing, load_pretrained
from tests.evaluation.artifacts import RecordingLog

NAME = "tiny-for-tests"
RELEASES: dict[str, dict[str, Any]] = {
    "like_openai": {"mean": (0.4, 0.3, 0.2), "std": (0.2, 0.3, 0.4), "quick_gelu": True},
    "like_laion": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "like_siglip": {
        **{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        **{"resize_mode": "squash", "interpolation": "bilinear"},
    },
}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A state dict of a model that open_clip knows two releases of."""
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    (tmp_path / f"{NAME}.json").write_text(json.dumps(architecture))
    open_clip.add_model_config(tmp_path / f"{NAME}.json")
    monkeypatch.setitem(registry._PRETRAINED, NAME, RELEASES)
    file = tmp_path / "weights.pt"
    torch.save(open_clip.create_model(NAME).state_dict(), file)
    return str(file)


def activation(model: Any) -> str:
    return type(model.visual.transformer.resblocks[0].mlp.gelu).__name__


def test_a_tokenizer_that_cannot_be_downloaded(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(name: str) -> None:
        raise OSError("We couldn't connect to the hub\nsee the documentation")

    monkeypatch.setattr(open_clip, "get_tokenizer", no_hub)
    with pytest.raises(UserError, match=r"its tokenizer cannot be loaded \(We couldn't connect to the hub\); download"):
        load_pretrained(NAME, weights)


@pytest.mark.parametrize("release", RELEASES)
def test_a_files_release_says_normalisation_and_activation(weights: str, release: str) -> None:
    loaded = load_pretrained(NAME, weights, release)
    assert loaded.preprocessing.mean == RELEASES[release]["mean"]
    assert loaded.preprocessing.std == RELEASES[release]["std"]
    assert activation(loaded.model) == ("QuickGELU" if release == "like_openai" else "GELU")


def test_a_release_says_how_images_become_squares(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    squashing = load_pretrained(NAME, weights, "like_siglip").preprocessing
    assert (squashing.resize_mode, squashing.interpolation) == ("squash", "bilinear")
    cropping = load_pretrained(NAME, weights, "like_openai").preprocessing
    assert (cropping.resize_mode, cropping.interpolation) == ("shortest", "bicubic")
    monkeypatch.setitem(RELEASES["like_siglip"], "resize_mode", "longest")
    with pytest.raises(UserError, match="resize_mode = longest, expected one of shortest, squash"):
        load_pretrained(NAME, weights, "like_siglip")


def test_a_tag_says_them_too(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: weights)
    loaded = load_pretrained(NAME, "like_openai")
    assert loaded.preprocessing.mean == (0.4, 0.3, 0.2)
    assert activation(loaded.model) == "QuickGELU"


def test_an_unknown_release_is_refused_with_the_known_ones(weights: str) -> None:
    with pytest.raises(
        UserError, match=r"train_clip\.release = laion: no tag .*\['like_openai', 'like_laion', 'like_siglip'\]"
    ):
        load_pretrained(NAME, weights, "laion")


def built(folder: Path, weights: str, release: str | None, log: RecordingLog) -> Path:
    folder.mkdir()
    build_clip(ClipConfig(kind="pretrained", model=NAME, pretrained=weights, release=release), folder, folder, log, 0)
    return folder


def test_the_release_is_kept_and_its_absence_is_noted(weights: str, tmp_path: Path) -> None:
    log = RecordingLog()
    assert ClipEmbedder.load(built(tmp_path / "a", weights, None, log)).preprocessing.mean != (0.4, 0.3, 0.2)
    assert "train_clip.release is not set" in log.notes[1]
    released = built(tmp_path / "b", weights, "like_openai", log)
    assert ClipEmbedder.load(released).preprocessing.mean == (0.4, 0.3, 0.2)


def test_the_same_weights_in_another_place_are_the_same_artifact(weights: str, tmp_path: Path) -> None:
    """Else the index and all videos would be made again where a cluster mounts its checkpoints elsewhere."""
    moved = tmp_path / "elsewhere" / "clip.bin"
    moved.parent.mkdir()
    moved.write_bytes(Path(weights).read_bytes())
    folders = [built(tmp_path / path.stem, str(path), None, RecordingLog()) for path in (Path(weights), moved)]
    assert digest_folder(folders[0]) == digest_folder(folders[1])
    texts = [ClipEmbedder.load(folder).embed_texts(["a red circle"]) for folder in folders]
    np.testing.assert_array_equal(texts[0], texts[1])
    Path(weights).unlink()
    assert digest_folder(folders[0]) != digest_folder(folders[1]), "it is made again when its weights are gone"


def test_the_record_of_an_earlier_version_names_the_path(weights: str, tmp_path: Path) -> None:
    folder = built(tmp_path / "a", weights, "like_openai", RecordingLog())
    (folder / "weights").unlink()
    record = json.loads((folder / "clip.json").read_text())
    (folder / "clip.json").write_text(json.dumps(record | {"pretrained": weights}))
    assert ClipEmbedder.load(folder).preprocessing.mean == (0.4, 0.3, 0.2)


def test_the_13b_config_names_a_release_that_its_model_has() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "hunyuan_13b.yaml").train_clip
    assert config.release in open_clip.list_pretrained_tags_by_model(config.model)


def test_preprocessing_covers_the_square_and_keeps_the_centre() -> None:
    images = torch.zeros(1, 20, 60, 3, dtype=torch.uint8)
    images[:, :, 20:40] = 255
    out = Preprocessing(20, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(images)
    assert out.shape == (1, 3, 20, 20)
    assert out.min() == out.max() == 1


def test_preprocessing_stretches_the_whole_image_to_the_square_if_so_trained() -> None:
    images = torch.zeros(1, 20, 60, 3, dtype=torch.uint8)
    images[:, :, :30] = 255
    for interpolation in ("bicubic", "bilinear"):
        out = Preprocessing(20, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash", interpolation)(images)
        assert out.shape == (1, 3, 20, 20)
        assert out[..., :8].min() == 1, "the left half"
        assert out[..., 12:].max() == -1, "the right half"


def test_a_file_of_weights_is_told_from_a_tag_by_its_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's key knows a file by its content and a tag by its name: both have to go by the same rule."""
    (tmp_path / "weights.pt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pretrained = weights\.pt: neither a file \(\./NAME if it is in"):
        load_pretrained("ViT-B-32", "weights.pt")
