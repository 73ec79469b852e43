from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faiss
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from magic141.artifacts.digests import digest_folder
from magic141.data.dataset import ClipDataset
from magic141.data.rows import Rows
from magic141.errors import UserError
from magic141.retrieval import clip
from magic141.retrieval.clip import Captions, ClipEmbedder, build_clip, contrastive_loss
from magic141.retrieval.config import ClipConfig, IndexConfig
from magic141.retrieval.index import build_index, make_index
from magic141.retrieval.pretrained import Preprocessing, load_pretrained
from magic141.retrieval.prior import ImagePrior
from magic141.retrieval.recall import measure_recall
from magic141.retrieval.search import search_videos
from magic141.stage_log import NullLog
from magic141.text_files import json_lines, read_json_lines
from tests.evaluation.artifacts import RecordingLog, make_data, make_retrieval


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("retrieval")
    data = make_data(folder / "data")
    return {"data": data, **make_retrieval(folder, data, num_steps=60)}


@pytest.fixture(scope="module")
def of_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two windows of every video; whole videos are held out."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("videos")
    data = make_data(folder / "data", has_truth=False)
    return {"data": data, **make_retrieval(folder, data)}


class Content(int):
    """Counts how often contents are compared."""

    num_compared = 0
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        Content.num_compared += 1
        return super().__eq__(other)


def open_prior(artifacts: dict[str, Path]) -> ImagePrior:
    return ImagePrior.open(artifacts["index"], artifacts["clip"], artifacts["data"])


def test_training_beats_chance(artifacts: dict[str, Path]) -> None:
    record = json.loads((artifacts["index"] / "index.json").read_text())
    recall = record["recall"]
    assert record["num_images"] == 48
    assert recall["num_queries"] + recall["num_without_match"] == 8
    assert recall["at"]["10"] >= recall["at"]["1"]
    assert recall["at"]["5"] > recall["chance"]["5"]


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


def test_images_are_read_a_batch_at_a_time_and_copied_nowhere(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(rows: Rows, index: Any) -> torch.Tensor:
        found = read(rows, index)
        asked.append(1 if isinstance(index, int) else len(found))
        return found

    asked: list[int] = []
    read = Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", record)
    monkeypatch.setattr(clip, "EMBED_BATCH", 20)
    (tmp_path / "clip").mkdir()
    (tmp_path / "index").mkdir()
    build_clip(ClipConfig(num_steps=1, batch_size=16), artifacts["data"], tmp_path / "clip", NullLog(), 0)
    build_index(IndexConfig(), artifacts["data"], artifacts["clip"], tmp_path / "index", NullLog(), 0)
    assert asked == [20, 20, 8] * 2
    assert len(open_prior(artifacts).retrieve("a red circle", 3)) == 3
    assert asked[6:] == [1] * 3
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.faiss", "images.jsonl", "index.json"}


def test_recall_of_an_approximate_index_compares_with_an_exact_search_in_little_memory() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(num, 4)).astype(np.float32) for num in (40_000, 200))
    index = make_index(IndexConfig(kind="ivf", num_lists=16, num_probes=2), vectors, seed=0)
    best = np.argsort(-queries @ vectors.T, axis=1)[:, :10]
    found = index.search(queries, 10)[1]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])
    embedder = SimpleNamespace(embed_texts=lambda texts: queries)
    contents = [Content(row % 100) for row in range(40_000)]
    asked = [("", Content(row % 100)) for row in range(200)]
    tracemalloc.start()
    recall = measure_recall(index, cast("ClipEmbedder", embedder), vectors, contents, asked, exact=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recall.same_as_exact == pytest.approx(expected)
    assert 0.1 < expected < 1
    assert recall.chance
    assert [recall.chance[k] for k in (1, 10)] == pytest.approx([0.01, 1 - 0.99**10], rel=2e-3)
    assert peak < 200 * 40_000 * 4, "less than one similarity of every query and image"
    assert Content.num_compared < 100_000, "not every query with every image"


def test_prior_returns_the_images_of_the_best_rows(artifacts: dict[str, Path]) -> None:
    hits = open_prior(artifacts).retrieve("a red circle moves up", 4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    embedder = ClipEmbedder.load(artifacts["clip"])
    scores = (
        embedder.embed_texts(["a red circle moves up"]) @ embedder.embed_images(np.stack([h.image for h in hits])).T
    )
    np.testing.assert_allclose(scores[0], [hit.score for hit in hits], atol=1e-5)
    train = ClipDataset.open(artifacts["data"], "train")
    for hit in hits:
        row = train.ids.index(hit.clip_id)
        assert hit.caption == train.captions[row]
        np.testing.assert_array_equal(hit.image, train.first_frame[row].numpy())


def test_prior_never_returns_more_than_it_has(artifacts: dict[str, Path]) -> None:
    assert len(open_prior(artifacts).retrieve("a red circle", 1000)) == 48


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_every_index_finds_a_vector_by_itself(kind: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = make_index(IndexConfig.model_validate({"kind": kind}), vectors, seed=0)
    scores, rows = index.search(vectors[:20], 1)
    assert (rows[:, 0] == np.arange(20)).all()
    np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-5)


def test_equal_captions_are_positives_of_each_other() -> None:
    vectors = torch.eye(2)[[0, 0, 1]]
    scale = torch.tensor(100.0)
    same = (torch.tensor([0, 0, 1])[:, None] == torch.tensor([0, 0, 1])[None]).float()
    assert (
        contrastive_loss(vectors, vectors, scale, same) < contrastive_loss(vectors, vectors, scale, torch.eye(3)) + 1e-6
    )
    assert contrastive_loss(vectors, vectors, scale, same).item() == pytest.approx(2 / 3 * np.log(2), abs=1e-4)


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


def test_missing_artifacts_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="build_index"):
        ImagePrior.open(tmp_path, tmp_path, tmp_path)
    with pytest.raises(UserError, match="train_clip"):
        ClipEmbedder.load(tmp_path)


def test_images_of_a_large_corpus_are_made_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (10, 40, 32, 3), dtype=torch.uint8)
    pick, preprocessing = torch.tensor([7, 0, 7]), Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    at_once = clip.TrainingImages(images, preprocessing)
    monkeypatch.setattr(clip, "MAX_CACHED_IMAGES", 9)
    later = clip.TrainingImages(images, preprocessing)
    assert (len(at_once), len(later)) == (10, 10)
    assert later._cached is None
    torch.testing.assert_close(later[pick], at_once[pick])


def test_a_file_of_weights_is_told_from_a_tag_by_its_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's key knows a file by its content and a tag by its name: both have to go by the same rule."""
    (tmp_path / "weights.pt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pretrained = weights\.pt: neither a file \(\./NAME if it is in"):
        load_pretrained("ViT-B-32", "weights.pt")


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_of_every_video_only_the_best_image_is_found(kind: str) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 16)).repeat(50, axis=0)
    vectors = (centres + 0.01 * rng.normal(size=centres.shape)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    videos = [f"{row // 50}.mp4" for row in range(300)]
    config = IndexConfig.model_validate({"kind": kind, "num_lists": 1})
    index = make_index(config, vectors, seed=0)
    found = search_videos(index, vectors[[20, 130]], videos, 4)
    assert [hits[0].row for hits in found] == [20, 130]
    if kind != "hnsw":  # whose graph need not reach all of them
        assert [len({videos[hit.row] for hit in hits}) for hits in found] == [4, 4]
        assert len(search_videos(index, vectors[:1], videos, 9)[0]) == 6
    for hits in found:
        assert len({videos[hit.row] for hit in hits}) == len(hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.row for hit in search_videos(index, vectors[:1], None, 9)[0]] == index.search(vectors[:1], 9)[1][
        0
    ].tolist()


@pytest.mark.parametrize("videos", [None, [*range(100)]])
def test_places_that_an_index_leaves_empty_are_no_hits(videos: list[int] | None) -> None:
    """An approximate one fills them with row -1, which is the last image to Python."""
    vectors = np.eye(2, dtype=np.float32)[[0] * 50 + [1] * 50]
    index = make_index(IndexConfig(kind="ivf", num_lists=2, num_probes=1), vectors, seed=0)
    [found] = search_videos(index, vectors[:1], videos, 80)
    assert sorted(hit.row for hit in found) == list(range(50))


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


def test_recall_counts_videos() -> None:
    """Two windows of a video are one chance, and one answer."""
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2, 3]]
    queries = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    embedder = cast("ClipEmbedder", SimpleNamespace(embed_texts=lambda texts: queries.repeat(len(texts), axis=0)))
    contents, videos = ["a", "a", "a", "b", "c", "c"], ["a1", "a1", "a1", "b1", "c1", "c2"]
    index = make_index(IndexConfig(), vectors, seed=0)
    for asked, at_once, chance in (("c", 0, 2 / 4), ("b", 0, 1 / 4), ("a", 1, 1 / 4), ("abc", 1 / 3, 1 / 3)):
        pairs = [(content, content) for content in asked]
        recall = measure_recall(index, embedder, vectors, contents, pairs, exact=True, videos=videos)
        assert recall.at == {1: pytest.approx(at_once), 5: 1.0, 10: 1.0}
        assert recall.chance
        assert recall.chance[1] == pytest.approx(chance)


def test_recall_is_of_videos_that_nobody_trained_on(of_videos: dict[str, Path]) -> None:
    record = json.loads((of_videos["index"] / "index.json").read_text())
    assert record["num_images"] == faiss.read_index(str(of_videos["index"] / "index.faiss")).ntotal == 48
    assert record["recall"]["num_queries"] == 8
    assert record["recall"]["num_without_match"] == 0, "the held-out videos' own images are searched too"
    assert 0 < record["recall"]["chance"]["1"] < 0.5
    hits = open_prior(of_videos).retrieve("a red circle moves up", 24)
    assert len({hit.video for hit in hits}) == 24
    assert len(open_prior(of_videos).retrieve("a red circle", 100)) == 24


def test_a_held_out_video_is_found_among_all(
    of_videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(of_videos["data"], tmp_path / "data")
    rows = read_json_lines(tmp_path / "data" / "manifest.jsonl")
    told_apart = ({**row, "caption": f"video {row['source']}"} for row in rows)
    (tmp_path / "data" / "manifest.jsonl").write_text(json_lines(told_apart))
    monkeypatch.setattr("magic141.retrieval.recall.RECALL_AT", (1, 100))  # more than there are videos
    build_index(IndexConfig(), tmp_path / "data", of_videos["clip"], tmp_path, NullLog(), 0)
    recall = json.loads((tmp_path / "index.json").read_text())["recall"]
    assert recall["at"]["100"] == recall["chance"]["100"] == 1


@pytest.mark.parametrize(("rule", "reason"), [("tails", "later parts of training videos"), (None, "prepare it again")])
def test_recall_of_captions_that_trained_is_no_number(
    of_videos: dict[str, Path], tmp_path: Path, rule: str | None, reason: str
) -> None:
    data, log = tmp_path / "data", RecordingLog()
    shutil.copytree(of_videos["data"], data)
    info = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**info, "heldout": rule}))
    build_index(IndexConfig(num_queries=8), data, of_videos["clip"], tmp_path, log, 0)
    recall = json.loads((tmp_path / "index.json").read_text())["recall"]
    assert recall["at"] is None
    assert reason in recall["reason"]
    assert reason in log.notes[0]
    assert not any(name.startswith("recall") for name in log.summaries)


@pytest.mark.parametrize(("num_probes", "exact"), [(1, False), (8, True)])
def test_as_many_lists_are_searched_as_the_config_says(num_probes: int, exact: bool) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(num, 8)).astype(np.float32) for num in (800, 50))
    index = make_index(IndexConfig(kind="ivf", num_lists=8, num_probes=num_probes), vectors, seed=0)
    best = np.argsort(-queries @ vectors.T, axis=1)[:, :5]
    assert bool((index.search(queries, 5)[1] == best).all()) == exact


def test_images_and_texts_count_alike_in_the_loss() -> None:
    images, texts = torch.nn.functional.normalize(
        torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), dim=2
    )
    scale, same = torch.tensor(10.0), torch.eye(4)
    one, other = contrastive_loss(images, texts, scale, same), contrastive_loss(texts, images, scale, same)
    torch.testing.assert_close(one, other)
