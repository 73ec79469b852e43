"""The open_clip model that embeds images and captions in one space: trained on the corpus, or loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magic141.data.dataset import ClipDataset
from magic141.data.info import load_info
from magic141.data.rows import Rows
from magic141.errors import UserError
from magic141.frozen import names_file
from magic141.models.device import cpu_threads
from magic141.retrieval.config import ClipConfig
from magic141.retrieval.pretrained import Preprocessing, load_pretrained
from magic141.stage_log import StageLog

MAX_CONTEXT_TOKENS = 77
MAX_IMAGE_SIZE = 64
MAX_CACHED_IMAGES = 20_000
MAX_LOGIT_SCALE = 100.0
EMBED_BATCH = 256
LOG_EVERY_STEPS = 10
WEIGHTS_LINK = "weights"  # to a file of the user's: an artifact's digest reaches behind it

Embeddings = NDArray[np.float32]
Images = Rows | Tensor | NDArray[np.uint8]


class ClipEmbedder:
    """Embeds images and texts as unit vectors of the shared space."""

    def __init__(self, model: nn.Module, tokenizer: Any, preprocessing: Preprocessing) -> None:
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, folder: Path) -> ClipEmbedder:
        """Loads what `build_clip` wrote.

        Raises:
            UserError: if the folder holds no CLIP model.
        """
        description = folder / "clip.json"
        if not description.is_file():
            raise UserError(f"{description}: no such file; expected the artifact of stage train_clip; run that stage")
        record = json.loads(description.read_text())
        if record["kind"] == "pretrained":
            link = folder / WEIGHTS_LINK
            weights = str(link.readlink()) if link.is_symlink() else record["pretrained"]
            return cls(*load_pretrained(record["model"], weights, record.get("release")))
        model = open_clip.CLIP(**record["architecture"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        vision, text = record["architecture"]["vision_cfg"], record["architecture"]["text_cfg"]
        return cls(model, _tokenizer(text["context_length"]), _tiny_preprocessing(vision["image_size"]))

    @torch.no_grad()
    def embed_images(self, images: Images) -> Embeddings:
        """Embeds uint8 [N, H, W, 3], read batch by batch, as unit vectors float32 [N, D]."""
        inputs = (self.preprocessing(batch).to(self.device) for batch in _batches(images))
        return _stack([self.model.encode_image(batch, normalize=True) for batch in inputs])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeds N texts as unit vectors float32 [N, D]."""
        batches = self.tokenizer(list(texts)).split(EMBED_BATCH)
        return _stack([self.model.encode_text(batch.to(self.device), normalize=True) for batch in batches])


class TrainingImages:
    """Preprocessed first frames: of a small corpus all at once, of a large one on demand.

    Args:
        images: uint8 [N, H, W, 3].
        preprocessing: turns them into float32 [N, 3, size, size], 50 KB each.
    """

    def __init__(self, images: Images, preprocessing: Preprocessing) -> None:
        self._images, self._preprocessing = images, preprocessing
        small = len(images) <= MAX_CACHED_IMAGES
        self._cached = torch.cat([preprocessing(batch) for batch in _batches(images)]) if small else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        if self._cached is not None:
            return self._cached[rows]
        images = (torch.as_tensor(self._images[[row]]) for row in rows.tolist())  # they may differ in size
        return torch.cat([self._preprocessing(image) for image in images])


def build_clip(config: ClipConfig, data: Path, out: Path, log: StageLog, seed: int) -> None:
    """Trains the tiny CLIP model on captions and first frames of the training clips, or records the pretrained one.

    Writes `clip.json` and, when trained, `model.safetensors`, or a link to the file that was named.
    """
    if config.kind == "pretrained":
        _write(out, _pretrained_record(config, out, log))
        return
    dataset = ClipDataset.open(data, "train")
    info = load_info(data)
    size = min(MAX_IMAGE_SIZE, *(side // 8 * 8 for side in (info.height, info.width)))
    captions = Captions.of(dataset.captions)
    if captions.num_cut:
        log.note(
            f"{captions.num_cut} captions are cut after {MAX_CONTEXT_TOKENS - 2} tokens of CLIP: what comes later says "
            "nothing to retrieval; put what matters most first"
        )
    architecture = tiny_architecture(config, size, captions.tokens.shape[1])
    torch.manual_seed(seed)
    model = open_clip.CLIP(**architecture)
    images = TrainingImages(dataset.first_frame, _tiny_preprocessing(size))
    with cpu_threads(1):  # for so small a model, two take a fifth longer
        loss = _train(model, config, images, captions, log, seed)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / "model.safetensors")
    num_parameters = sum(p.numel() for p in model.parameters())
    _write(out, {"kind": "train", "architecture": architecture, "loss": loss, "num_parameters": num_parameters})
    log.summary({"clip_loss": loss, "clip_parameters": num_parameters})


def _pretrained_record(config: ClipConfig, out: Path, log: StageLog) -> dict[str, Any]:
    """Which weights are meant, once they have been loaded. A file is linked: its content counts, not its path."""
    assert config.pretrained is not None  # the config requires it
    load_pretrained(config.model, config.pretrained, config.release)
    log.note(f"CLIP: {config.model}, {config.pretrained} loads")
    is_file = names_file(config.pretrained)
    if is_file:
        (out / WEIGHTS_LINK).symlink_to(config.pretrained)  # not resolved: the target's suffix says how to read it
    if is_file and not config.release:
        log.note(
            "CLIP: train_clip.release is not set: the weights are taken to want OpenAI's normalisation and the "
            f"activation of open_clip's {config.model}; if they are of a release, name it"
        )
    named = WEIGHTS_LINK if is_file else config.pretrained
    return {"kind": "pretrained", "model": config.model, "pretrained": named, "release": config.release}


@dataclass(frozen=True)
class Captions:
    """Tokens of the captions that differ for the model [K, L], cut to the longest, and every caption's row [N] in them.

    L becomes the model's context length. Positions beyond it would take most of a training step and yet stay untrained,
    so that longer texts would only meet noise there.
    """

    tokens: Tensor
    rows: Tensor
    num_cut: int  # captions that are longer than the model reads

    @classmethod
    def of(cls, captions: Sequence[str]) -> Captions:
        """Tokenizes the captions of a corpus."""
        distinct = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        places = torch.tensor([distinct[caption] for caption in captions])
        longer = _tokenizer(MAX_CONTEXT_TOKENS + 1)(list(distinct))
        is_cut, tokens = longer[:, -1] != 0, longer[:, :-1]
        tokens[is_cut, -1] = longer.max()  # the end-of-text token has the highest id
        tokens, rows = torch.unique(tokens, dim=0, return_inverse=True)
        longest = int(tokens.argmax(1).max()) + 1
        return cls(tokens[:, :longest], rows[places], int(is_cut[places].sum()))


def tiny_architecture(config: ClipConfig, image_size: int, context_length: int) -> dict[str, Any]:
    """Arguments of `open_clip.CLIP`: two layers on each side, patches of 8 pixels, texts of `context_length` tokens."""
    width, head_width = config.embed_dim, config.head_width
    vision = {"image_size": image_size, "layers": 2, "width": width, "patch_size": 8, "head_width": head_width}
    text = {
        "context_length": context_length,
        "vocab_size": 49408,
        "layers": 2,
        "width": width,
        "heads": width // head_width,
    }
    return {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE in which all pairs with the same caption are positives.

    Args:
        images: unit vectors [B, D].
        texts: unit vectors [B, D].
        scale: the inverse temperature.
        same: [B, B], 1 where the captions are the same, else 0.
    """
    logits = scale * images @ texts.T
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def _train(
    model: Any, config: ClipConfig, images: TrainingImages, captions: Captions, log: StageLog, seed: int
) -> float:
    """Trains in place; returns the mean loss of the last tenth of the steps."""
    # fused, or most of a step would go into updating open_clip's 49,408 words, of which captions use only a few
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    with log.progress(config.num_steps, "step") as advance:
        for step in range(config.num_steps):
            pick = torch.randperm(len(images), generator=generator)[: config.batch_size]
            index = captions.rows[pick]
            features = model(images[pick], captions.tokens[index])
            scale = features[2].clamp(max=MAX_LOGIT_SCALE)
            loss = contrastive_loss(features[0], features[1], scale, (index[:, None] == index[None]).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if step % LOG_EVERY_STEPS == 0 or step == config.num_steps - 1:
                log.metrics({"clip_loss": losses[-1]}, step)
            advance(1)
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def _tokenizer(context_length: int) -> Any:
    return open_clip.SimpleTokenizer(context_length=context_length)


def _tiny_preprocessing(size: int) -> Preprocessing:
    return Preprocessing(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _batches(images: Images) -> Iterator[Tensor]:
    if isinstance(images, Rows):
        return images.batches(EMBED_BATCH)
    return (torch.as_tensor(images[start : start + EMBED_BATCH]) for start in range(0, len(images), EMBED_BATCH))


def _stack(batches: list[Tensor]) -> Embeddings:
    return torch.cat(batches).float().cpu().numpy()


def _write(out: Path, record: dict[str, Any]) -> None:
    (out / "clip.json").write_text(json.dumps(record, indent=1))
