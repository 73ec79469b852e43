"""Int8 weights: bounded error, bit-equal reload, excluded layers untouched, memory that really shrinks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from magic141.artifacts.digests import digest_folder
from magic141.errors import UserError
from magic141.evaluation.config import QuantizeConfig
from magic141.models.transformer import load_transformer, make_prefix, velocity
from magic141.quantization import Int8Linear, load_quantized, quantize_linear_layers, quantize_student
from magic141.stage_log import NullLog
from tests.evaluation.artifacts import RecordingLog
from tests.models.tiny import tiny_inputs, tiny_transformer

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    layer = torch.nn.Linear(30, 20)
    layer.weight.data[3] *= 100  # one large channel must not cost the others their precision
    quantised = Int8Linear.from_float(layer)
    error = (quantised.dequantized(torch.float32) - layer.weight).abs()
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert (error <= quantised.scale[:, None] / 2 + 1e-7).all()
    rounded = quantised.scale[:, None] / step
    assert ((rounded >= 1) & (rounded <= 1.01)).all(), "rounded up, so that the largest weight is not clipped"


def test_a_channel_of_zeros_stays_zero() -> None:
    layer = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(layer.weight)
    assert Int8Linear.from_float(layer).dequantized(torch.float32).abs().sum() == 0


def test_scales_keep_their_precision_in_bfloat16() -> None:
    """Each of them would be off by up to 0.4 %, for all of its channel."""
    layer = torch.nn.Linear(64, 48, bias=False)
    quantised, x = Int8Linear.from_float(layer), torch.randn(4000, 64).bfloat16()
    with torch.no_grad():
        y, exact = quantised(x), torch.nn.functional.linear(x.double(), quantised.dequantized(torch.float32).double())
    gain = (y * exact).sum(0) / exact.square().sum(0)
    assert y.dtype == torch.bfloat16
    assert (gain - 1).abs().max() < 0.0025


def test_what_is_not_quantised_is_sampled_in_the_dtype_of_the_others(tmp_path: Path) -> None:
    tiny_transformer(image_condition=True).save_pretrained(tmp_path / "transformer")
    quantize_student(QuantizeConfig(), tmp_path, tmp_path, NullLog())
    loaded = load_quantized(tmp_path, torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    x_t, sigma, cond = tiny_inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made, plain = (
            velocity(model, x_t, sigma, cond, make_prefix(x_t, 1))
            for model in (loaded, load_transformer(tmp_path / "transformer", torch.bfloat16))
        )
    assert (made - plain).norm() < 0.03 * plain.norm()


def test_the_same_student_in_another_place_gives_the_same_artifact(tmp_path: Path) -> None:
    digests = set()
    for place in (tmp_path / "here", tmp_path / "there"):
        tiny_transformer(image_condition=True).save_pretrained(place / "student" / "transformer")
        (place / "out").mkdir()
        quantize_student(QuantizeConfig(), place / "student", place / "out", NullLog())
        digests.add(digest_folder(place / "out"))
    assert len(digests) == 1


def test_stage_reloads_bit_equal_and_leaves_excluded_layers_alone(tmp_path: Path) -> None:
    student, out = tmp_path / "student", tmp_path / "out"
    model = tiny_transformer(image_condition=True)
    model.save_pretrained(student / "transformer")
    out.mkdir()
    config, log = QuantizeConfig(), RecordingLog()
    quantize_student(config, student, out, log)
    reloaded = load_quantized(out)
    assert not reloaded.training
    expected = tiny_transformer(image_condition=True)
    layers = quantize_linear_layers(expected, config.exclude)
    x_t, sigma, cond = tiny_inputs()
    prefix = make_prefix(x_t, 1)
    assert torch.equal(velocity(reloaded, x_t, sigma, cond, prefix), velocity(expected, x_t, sigma, cond, prefix))
    assert all(isinstance(reloaded.get_submodule(name), Int8Linear) for name in layers)
    for name, module in reloaded.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert name.split(".")[0] in config.exclude
            assert torch.equal(module.weight, model.get_submodule(name).weight)
    figures = json.loads((out / "layers.json").read_text())
    assert figures["max_relative_error"] == max(figures["relative_error"].values()) < 0.02
    int8 = [module for module in reloaded.modules() if isinstance(module, Int8Linear)]
    num_weights = sum(layer.weight.numel() for layer in int8)
    ratio = sum(layer.weight.nbytes + layer.scale.nbytes for layer in int8) / (4 * num_weights)
    assert figures["linear_weight_ratio"] == pytest.approx(ratio)
    assert (out / "int8.safetensors").stat().st_size < (student / "transformer" / WEIGHTS).stat().st_size - (
        2 * num_weights
    )
    assert log.summaries.items() <= figures.items()
    assert log.summaries["num_layers"] == len(layers)
    close = velocity(model, x_t, sigma, cond, prefix)
    assert (velocity(reloaded, x_t, sigma, cond, prefix) - close).norm() < 0.02 * close.norm()


def test_all_layers_of_an_excluded_module_are_left_alone() -> None:
    model = tiny_transformer()
    kept = ("context_embedder", "proj_out")
    names = set(quantize_linear_layers(model, kept))
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name.partition(".")[0] for name in linear} == set(kept)
    assert any("." in name for name in linear)
    assert not names & linear


def test_excluding_everything_is_refused() -> None:
    with pytest.raises(UserError, match=r"quantize\.exclude"):
        quantize_linear_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)), ("0",))


def test_a_file_that_does_not_read_back_as_it_was_written_is_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_transformer().save_pretrained(tmp_path / "transformer")
    monkeypatch.setattr("magic141.quantization.load_quantized", lambda _: tiny_transformer(seed=1))
    with pytest.raises(RuntimeError, match=r"int8\.safetensors: \S+ is not bit-equal after reloading"):
        quantize_student(QuantizeConfig(), tmp_path, tmp_path, NullLog())


def test_a_folder_without_a_quantised_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no quantised model; expected quantization\.json; run the quantize stage"):
        load_quantized(tmp_path)
