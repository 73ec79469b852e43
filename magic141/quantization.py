"""Int8 weights for the transformer blocks' linear layers (paper, section 3.2); arithmetic stays in floating point.

`q = round(w / scale)`, `scale = max|w| / 127` per output channel, rounded up to bfloat16. This only saves memory:
activations are not quantised, and the weights are expanded layer by layer when they are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from magic141.errors import UserError
from magic141.evaluation.config import QuantizeConfig
from magic141.models.size import weight_megabytes
from magic141.models.transformer import load_transformer
from magic141.stage_log import StageLog

WEIGHTS_FILE = "int8.safetensors"


class Int8Linear(nn.Module):
    """A linear layer whose weight is stored as int8 with one scale per output channel."""

    weight: Tensor  # int8 [out, in]
    scale: Tensor  # float [out]
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_float(cls, layer: nn.Linear) -> Int8Linear:
        """Quantises a layer; the error of each weight is at most half its channel's scale."""
        quantised = cls(layer.in_features, layer.out_features, layer.bias is not None)
        weight = layer.weight.detach().float()
        scale = _in_bfloat16(weight.abs().amax(dim=1).clamp_min(1e-12) / 127)
        quantised.weight.copy_((weight / scale[:, None]).round().clamp(-127, 127))
        quantised.scale.copy_(scale)
        if layer.bias is not None and quantised.bias is not None:
            quantised.bias.copy_(layer.bias.detach())
        return quantised

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight as floats [out, in]."""
        return self.weight.to(dtype) * self.scale.to(dtype)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in] to [..., out], in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.dequantized(x.dtype), bias)


def quantizable_layers(model: nn.Module, exclude: tuple[str, ...]) -> list[str]:
    """Names of the linear layers to quantise: all but those whose top-level module is in `exclude`."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".", 1)[0] not in exclude
    ]


def quantize_linear_layers(model: nn.Module, exclude: tuple[str, ...]) -> dict[str, float]:
    """Replaces the layers in place; returns their names, with the relative error of each weight.

    Raises:
        UserError: if nothing is left to quantise.
    """
    names = quantizable_layers(model, exclude)
    if not names:
        raise UserError(f"quantize.exclude = {list(exclude)}: leaves nothing to quantise; exclude fewer modules")
    errors = {}
    for name in names:
        layer = _get_linear(model, name)
        quantised = Int8Linear.from_float(layer)
        errors[name] = _relative_error(layer.weight.detach(), quantised)
        _replace(model, name, quantised)
    return errors


def save_quantized(model: HunyuanVideoTransformer3DModel, layers: Iterable[str], folder: Path) -> None:
    """Writes config, layer names and weights."""
    model.save_config(folder / "transformer")
    (folder / "quantization.json").write_text(json.dumps({"scheme": "int8-weight-per-channel", "layers": [*layers]}))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS_FILE)


def load_quantized(folder: Path, dtype: torch.dtype = torch.float32) -> HunyuanVideoTransformer3DModel:
    """Rebuilds the quantised model, in float32 bit for bit.

    Args:
        folder: what the stage wrote.
        dtype: of what is not quantised. Scales and biases of what is stay in float32.

    Raises:
        UserError: if the folder holds no quantised model.
    """
    description = folder / "quantization.json"
    if not description.is_file():
        raise UserError(f"{folder}: no quantised model; expected quantization.json; run the quantize stage")
    config = HunyuanVideoTransformer3DModel.load_config(folder / "transformer")
    with torch.device("meta"):  # avoids a float network in memory, which is four times as large
        model = HunyuanVideoTransformer3DModel.from_config(config)
        for name in json.loads(description.read_text())["layers"]:
            layer = _get_linear(model, name)
            _replace(model, name, Int8Linear(layer.in_features, layer.out_features, layer.bias is not None))
    model.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def quantize_student(config: QuantizeConfig, student: Path, out: Path, log: StageLog) -> None:
    """Runs the stage: quantises the student, saves it, reloads it and checks that nothing has changed."""
    model = load_transformer(student / "transformer").eval()
    before = weight_megabytes(model)
    errors = quantize_linear_layers(model, config.exclude)
    save_quantized(model, errors, out)
    reloaded = load_quantized(out).state_dict()
    for name, value in model.state_dict().items():
        if not torch.equal(value, reloaded[name]):
            raise RuntimeError(f"{out / WEIGHTS_FILE}: {name} is not bit-equal after reloading")
    layers: list[Any] = [model.get_submodule(name) for name in errors]
    linear_before = sum(layer.weight.numel() * 4 for layer in layers)
    linear_after = sum(layer.weight.numel() + layer.scale.numel() * 4 for layer in layers)
    figures: dict[str, float] = {
        "num_layers": len(errors),
        "max_relative_error": max(errors.values()),
        "weight_mb_before": before,
        "weight_mb_after": weight_megabytes(model),
        "linear_weight_ratio": linear_after / linear_before,
    }
    (out / "layers.json").write_text(json.dumps({**figures, "relative_error": errors}, indent=1))
    log.summary(figures)


def _in_bfloat16(scale: Tensor) -> Tensor:
    """The scales, made at most 1 % larger, so that a network sampled in bfloat16 has the ones it was quantised with."""
    return (scale * (1 + 2**-8)).bfloat16().float()


def _relative_error(weight: Tensor, layer: Int8Linear) -> float:
    return float((layer.dequantized(torch.float32) - weight).norm() / weight.norm().clamp_min(1e-12))


def _get_linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear), name
    return layer


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
