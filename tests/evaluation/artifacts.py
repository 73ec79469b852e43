"""A tiny corpus and tiny models on disk, in the layouts of the stages' artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magic141.data.config import ShapesConfig
from magic141.data.info import DatasetInfo
from magic141.data.shapes import ShapeClip, render_clip, sample_clip
from magic141.data.sizes import Size
from magic141.evaluation.config import GenerateConfig, QuantizeConfig
from magic141.evaluation.generation.generate import generate_suite
from magic141.evaluation.generation.model_folders import ModelFolders
from magic141.models.config import CodecConfig, EncoderConfig
from magic141.models.encoders import Encoders
from magic141.models.transformer import build_transformer
from magic141.models.vae import CausalPCACodec, VideoCodec
from magic141.quantization import quantize_student
from magic141.retrieval.clip import build_clip
from magic141.retrieval.config import ClipConfig, IndexConfig
from magic141.retrieval.index import build_index
from magic141.stage_log import NullLog
from magic141.training.dmd2.config import Dmd2Config
from tests.models.tiny import CONFIG, INFO, fit_encoders

NUM_CLIPS = {"train": 48, "validation": 4, "heldout": 16}
NUM_FRAMES, SIZE, CHANNELS = 13, 32, 12
GENERATE = GenerateConfig(
    num_exact_clips=6,
    num_showcase_clips=2,
    num_prompts=2,
    many_steps=5,
    long_video_windows=3,
    long_video_clips=2,
    long_video_teacher_steps=2,
    num_continuation_clips=3,
    batch_size=4,
    num_threads=1,
)
DMD2 = Dmd2Config()


@dataclass
class RecordingLog(NullLog):
    """Keeps what a stage reports."""

    summaries: dict[str, Any] = field(default_factory=dict)
    images: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    advanced: int = 0
    total: int = 0

    def summary(self, values: Any) -> None:
        self.summaries.update(values)

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        self.images[key] = image

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, total: int, unit: str) -> Any:
        self.total, self.advanced = total, 0
        return _Bar(self)


@dataclass
class _Bar:
    log: RecordingLog

    def __enter__(self) -> Callable[[int], None]:
        return self._advance

    def __exit__(self, *_: object) -> None:
        pass

    def _advance(self, done: int) -> None:
        self.log.advanced += done


def make_data(folder: Path, has_truth: bool = True) -> Path:
    """A prepared corpus of shapes; without truth it looks like one made from a folder of videos."""
    folder.mkdir(parents=True)
    (folder / "shards").mkdir()
    rng = np.random.default_rng(0)
    clips = {split: [sample_clip(rng, ShapesConfig()) for _ in range(num)] for split, num in NUM_CLIPS.items()}
    frames = {split: _render(specs) for split, specs in clips.items()}
    codec = VideoCodec(CausalPCACodec.fit(frames["train"], CodecConfig(num_channels=CHANNELS)))
    codec.save(folder / "codec")
    captions = [clip.caption for specs in clips.values() for clip in specs]
    encoders = fit_encoders(captions, EncoderConfig(width=32), 0)
    encoders.save(folder / "encoders")
    rows: list[dict[str, Any]] = []
    for split, specs in clips.items():
        tensors = _encode(specs, frames[split], codec, encoders)
        shard = f"shards/{split}-00000.safetensors"
        kept = {"frames": frames[split]} if split == "heldout" else {}
        save_file({name: tensor.contiguous() for name, tensor in {**tensors, **kept}.items()}, folder / shard)
        for row, clip in enumerate(specs):
            truth = clip.to_dict() if has_truth else None
            rows.append(
                {
                    "id": f"{split}{row}",
                    "split": split,
                    "shard": shard,
                    "row": row,
                    "caption": clip.caption,
                    "truth": truth,
                    "source": "shapes" if has_truth else f"{split}{row // 2}.mp4",
                }
            )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    null = encoders.encode_text([""])
    save_file(
        {"text_tokens": null.tokens, "text_mask": null.mask, "pooled": null.pooled}, folder / "null_text.safetensors"
    )
    info = _info(tensors, has_truth)
    (folder / "dataset.json").write_text(info.model_dump_json())
    return folder


def add_upright_clips(data: Path, num: int) -> Path:
    """Gives a corpus `num` training clips more, which are half as wide: the left halves of its first ones."""
    tensors = load_file(data / "shards" / "train-00000.safetensors")
    for name in ("latents", "anchor", "first_latent"):
        if name in tensors:
            tensors[name] = tensors[name][..., : SIZE // 16]
    tensors["first_frame"] = tensors["first_frame"][:, :, : SIZE // 2]
    shard = "shards/train_upright-00000.safetensors"
    save_file({name: tensor[:num].contiguous() for name, tensor in tensors.items()}, data / shard)
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    more = [{**row, "id": f"upright{row['row']}", "shard": shard} for row in rows if row["split"] == "train"][:num]
    (data / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + more))
    info = DatasetInfo.model_validate_json((data / "dataset.json").read_text())
    upright = Size(SIZE, SIZE // 2)
    sizes = {str(Size(SIZE, SIZE)): NUM_CLIPS["train"], str(upright): num}
    counts = {**info.num_clips, "train": NUM_CLIPS["train"] + num}
    known = info.model_copy(update={"num_clips": counts, "more_sizes": (upright,), "num_of_size": sizes})
    (data / "dataset.json").write_text(known.model_dump_json())
    return data


def make_models(folder: Path, data: Path) -> dict[str, Path]:
    """Untrained networks of every kind, with the training records that the report reads."""
    info = DatasetInfo.model_validate_json((data / "dataset.json").read_text())
    folders = {name: folder / name for name in ("teacher", "cfg_student", "student", "int8")}
    torch.manual_seed(0)
    for name in ("teacher", "cfg_student", "student"):
        guided = name != "teacher"
        network = build_transformer(CONFIG, CHANNELS, info.text_width, info.pooled_width, True, guided)
        torch.nn.init.normal_(network.proj_out.weight, std=0.02)
        network.save_pretrained(folders[name] / "transformer")
        _write_training(folders[name])
    folders["int8"].mkdir()
    quantize_student(QuantizeConfig(), folders["student"], folders["int8"], NullLog())
    return folders


def make_retrieval(folder: Path, data: Path, num_steps: int = 2) -> dict[str, Path]:
    """A CLIP model and an index."""
    folders = {"clip": folder / "clip", "index": folder / "index"}
    for path in folders.values():
        path.mkdir(parents=True)
    build_clip(ClipConfig(num_steps=num_steps, batch_size=16), data, folders["clip"], NullLog(), 0)
    build_index(IndexConfig(num_queries=8, num_threads=1), data, folders["clip"], folders["index"], NullLog(), 0)
    return folders


def generate(
    parts: dict[str, Path], out: Path, run_dir: Path, log: NullLog | None = None, config: GenerateConfig = GENERATE
) -> None:
    """Stage `generate` on a corpus, a retrieval and models."""
    models = ModelFolders(parts["teacher"], parts["cfg_student"], parts["student"], parts["int8"])
    data, clip, index = (parts[name] for name in ("data", "clip", "index"))
    generate_suite(config, DMD2, CONFIG, data, clip, index, models, out, log or RecordingLog(), 0, run_dir)


def make_generated(folder: Path, data: Path, log: RecordingLog | None = None) -> dict[str, Path]:
    """Everything that the report shows except the scores: stage name -> artifact."""
    retrieval, models = make_retrieval(folder, data), make_models(folder, data)
    parts = {"data": data, **retrieval, **models}
    out = folder / "generated"
    out.mkdir()
    generate(parts, out, folder / "work", log)
    return {
        "prepare_data": data,
        "train_clip": retrieval["clip"],
        "build_index": retrieval["index"],
        "pretrain_i2v": models["teacher"],
        "distill_cfg": models["cfg_student"],
        "distill_dmd2": models["student"],
        "quantize": models["int8"],
        "generate": out,
    }


def _render(specs: list[ShapeClip]) -> Tensor:
    return torch.from_numpy(np.stack([render_clip(clip, NUM_FRAMES, SIZE, SIZE) for clip in specs]))


def _encode(specs: list[ShapeClip], frames: Tensor, codec: VideoCodec, encoders: Encoders) -> dict[str, Tensor]:
    text = encoders.encode_text([clip.caption for clip in specs])
    return {
        "latents": codec.encode_video(frames),
        "text_tokens": text.tokens,
        "text_mask": text.mask,
        "pooled": text.pooled,
        "image_tokens": encoders.encode_image(frames[:, 0]),
        "anchor": codec.encode_video(frames[:, :1]),
        "first_latent": codec.encode_video(frames[:, :1]),
        "anchor_tokens": encoders.encode_image(frames[:, -1]),
        "first_frame": frames[:, 0],
    }


def _info(tensors: dict[str, Tensor], has_truth: bool) -> DatasetInfo:
    _, channels, frames, height, width = tensors["latents"].shape
    sizes = {
        "num_clips": NUM_CLIPS,
        "source": "shapes" if has_truth else "folder",
        "num_frames": NUM_FRAMES,
        "height": SIZE,
        "width": SIZE,
        "latent_shape": (channels, frames, height, width),
        "text_width": tensors["text_tokens"].shape[2],
        "pooled_width": tensors["pooled"].shape[1],
        "temporal_factor": 2,
        "has_ground_truth": has_truth,
        "heldout": None if has_truth else "videos",
    }
    return INFO.model_copy(update=sizes)


def _write_training(folder: Path) -> None:
    steps = range(0, 200, 10)
    lines = [json.dumps({"step": step, "loss": 1.0 / (1 + step / 50), "grad_norm": 0.5}) for step in steps]
    lines.append(json.dumps({"step": 199, "validation_loss": 0.3}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record = {"steps": 200, "seconds": 12.0, "cpu_seconds": 20.0, "num_parameters": 12345, "engine": "plain"}
    (folder / "training.json").write_text(json.dumps({**record, "num_workers": 1, "peak_memory_mb": 300.0}))
