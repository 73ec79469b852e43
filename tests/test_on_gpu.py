"""On a GPU: the attention that networks take there, int8 weights, and clips that are those of a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from magic141.models.config import Sampler, TransformerConfig
from magic141.models.generator import VideoGenerator
from magic141.models.sampling import SamplingSettings
from magic141.models.text_embedding import TextEmbedding
from magic141.models.transformer import build_transformer, make_prefix, velocity
from magic141.quantization import quantize_linear_layers
from tests.models.tiny import CHANNELS, POOLED, TEXT, tiny_inputs, tiny_transformer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

GPU = torch.device("cuda")
HEADS_OF_16 = TransformerConfig(
    num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1, rope_axes_dim=(4, 6, 6)
)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION])
@torch.no_grad()
def test_without_padding_attention_takes_the_kernels_that_know_no_masks(backend: SDPBackend) -> None:
    torch.manual_seed(0)
    model = build_transformer(HEADS_OF_16, CHANNELS, TEXT, POOLED, image_condition=True)
    torch.nn.init.normal_(model.proj_out.weight, std=0.2)
    x_t, sigma, cond = tiny_inputs()
    assert cond.mask is not None
    cond.mask.fill_(True)
    prefix = make_prefix(x_t, 1)
    expected = velocity(model, x_t, sigma, cond, prefix)
    inputs, there = x_t.to(GPU, torch.bfloat16), cond.to(GPU)
    half = type(there)(there.tokens.bfloat16(), there.mask, there.pooled.bfloat16())
    with sdpa_kernel(backend):
        found = velocity(model.to(GPU, torch.bfloat16), inputs, sigma.to(GPU), half, make_prefix(inputs, 1))
    torch.testing.assert_close(found.cpu(), expected, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_int8_weights_give_what_they_give_on_a_cpu() -> None:
    x_t, sigma, cond = tiny_inputs()
    model = tiny_transformer()
    quantize_linear_layers(model, exclude=())
    expected = velocity(model, x_t, sigma, cond)
    found = velocity(copy.deepcopy(model).to(GPU), x_t.to(GPU), sigma.to(GPU), cond.to(GPU))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_seed_makes_the_same_clip_on_a_gpu_as_on_a_cpu(sampler: Sampler) -> None:
    def clip(device: torch.device) -> torch.Tensor:
        model = tiny_transformer(image_condition=True).to(device)
        null = TextEmbedding(torch.zeros(1, 5, TEXT), torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, POOLED))
        generator = VideoGenerator(model, null.to(device), 3, SamplingSettings(4, 5.0, 1.0, "two_evaluations", sampler))
        rng = torch.Generator().manual_seed(1)
        image_tokens = torch.randn(1, 2, TEXT, generator=rng).to(device)
        known = torch.randn(1, CHANNELS, 1, 2, 2, generator=rng).to(device)
        return generator.sample(null.to(device), image_tokens, known, seed=3).cpu()

    torch.testing.assert_close(clip(GPU), clip(torch.device("cpu")), atol=0.05, rtol=0.05)
