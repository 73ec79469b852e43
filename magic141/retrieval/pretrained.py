"""open_clip models with released weights, and how images become their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magic141.errors import UserError, first_line
from magic141.frozen import names_file
from magic141.models.device import sampling_device

RESIZE_MODES = ("shortest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Preprocessing:
    """Turns images into inputs: resize to a square of `size`, normalise per channel.

    Attributes:
        size: of a side.
        mean: per channel.
        std: per channel.
        resize_mode: "shortest": cover the square and crop the centre; "squash": stretch the image to it.
        interpolation: "bicubic" or "bilinear".
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] to float32 [N, 3, size, size]."""
        x = images.permute(0, 3, 1, 2).float() / 255
        sides = self._sides(*x.shape[2:])
        if sides != list(x.shape[2:]):
            x = F.interpolate(x, sides, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = ((side - self.size) // 2 for side in x.shape[2:])
        x = x[:, :, top : top + self.size, left : left + self.size]
        return (x - torch.tensor(self.mean).reshape(1, 3, 1, 1)) / torch.tensor(self.std).reshape(1, 3, 1, 1)

    def _sides(self, height: int, width: int) -> list[int]:
        """Those that an image is resized to."""
        if self.resize_mode == "squash":
            return [self.size, self.size]
        scale = self.size / min(height, width)
        return [max(self.size, round(side * scale)) for side in (height, width)]


class Pretrained(NamedTuple):
    """A model on the device that samples, with what makes its inputs."""

    model: nn.Module
    tokenizer: Any
    preprocessing: Preprocessing


def load_pretrained(name: str, pretrained: str, release: str | None = None) -> Pretrained:
    """A pretrained open_clip model, normalising and activating as its weights were trained.

    Args:
        name: of the model.
        pretrained: one of its tags, or the path of a state dict.
        release: the tag whose weights the state dict holds; none for weights of one's own.

    Raises:
        UserError: if open_clip does not know the model or the release, or the weights cannot be loaded.
    """
    require_known(name, pretrained, release)
    tag = release if _is_file(pretrained) else pretrained
    # open_clip takes both from a tag only where it downloads the weights, and of the activation it merely warns
    trained = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    wanted = {key: trained[key] for key in ("mean", "std", "interpolation", "resize_mode") if trained.get(key)}
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=bool(trained.get("quick_gelu")),
            force_preprocess_cfg=wanted,
        )
    except Exception as error:  # any error of the hub client, the file or torch
        raise UserError(
            f"train_clip.pretrained = {pretrained}: weights of {name} cannot be loaded ({_reason(error)}); give the "
            "path of a state dict"
        ) from error
    return Pretrained(model.to(sampling_device()), _tokenizer(name), _preprocessing(model))


def _tokenizer(name: str) -> Any:
    """That of a model; of some models it is downloaded, whatever their weights come from."""
    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # any error of the hub client
        raise UserError(
            f"train_clip.model = {name}: its tokenizer cannot be loaded ({_reason(error)}); download it once "
            "where there is a network, or use a model with open_clip's own, such as ViT-L-14"
        ) from error


def _reason(error: Exception) -> str:
    return first_line(str(error)) or type(error).__name__


def require_known(name: str, pretrained: str, release: str | None = None) -> None:
    """Raises UserError if open_clip does not know the model, the tag or the release that `load_pretrained` is given."""
    if name not in open_clip.list_models():
        raise UserError(f"train_clip.model = {name}: open_clip does not know it; use one of open_clip.list_models()")
    if not _is_file(pretrained):
        _require_tag(name, "pretrained", pretrained, "neither a file (./NAME if it is in this folder) nor a tag of")
    elif release is not None:
        _require_tag(name, "release", release, "no tag of")


def _is_file(pretrained: str) -> bool:
    """Whether it names a file; without a slash it is a tag, also in a stage's key."""
    return names_file(pretrained) and Path(pretrained).is_file()


def _require_tag(name: str, field: str, tag: str, reason: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise UserError(f"train_clip.{field} = {tag}: {reason} {name}; expected one of {tags}")


def _preprocessing(model: nn.Module) -> Preprocessing:
    wanted = open_clip.get_model_preprocess_cfg(model)
    size = wanted["size"][0] if isinstance(wanted["size"], (tuple, list)) else wanted["size"]
    for field, known in (("resize_mode", RESIZE_MODES), ("interpolation", INTERPOLATIONS)):
        if wanted[field] not in known:
            raise UserError(
                f"train_clip.model: it was trained on images with {field} = {wanted[field]}, expected one of "
                f"{', '.join(known)}; use another model"
            )
    mean, std = tuple(wanted["mean"]), tuple(wanted["std"])
    return Preprocessing(size, mean, std, wanted["resize_mode"], wanted["interpolation"])
