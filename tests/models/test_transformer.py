"""The surgeries change nothing until the first update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magic141.errors import UserError
from magic141.models.config import TransformerConfig
from magic141.models.text_embedding import TextEmbedding
from magic141.models.transformer import (
    add_guidance_embedding,
    build_transformer,
    condition,
    expand_to_i2v,
    fold_guidance,
    load_transformer,
    make_prefix,
    velocity,
)
from tests.models.tiny import CHANNELS, CONFIG, POOLED, TEXT, tiny_inputs, tiny_transformer


@pytest.mark.parametrize("patch_size_t", [1, 2])
def test_i2v_equals_t2v_bit_for_bit_for_any_first_frame(patch_size_t: int) -> None:
    t2v = tiny_transformer(patch_size_t=patch_size_t)
    i2v = expand_to_i2v(t2v)
    x_t, sigma, cond = tiny_inputs()
    x_t = torch.cat([x_t, x_t], dim=2)  # an even number of frames
    prefix = make_prefix(torch.randn_like(x_t) * 100, 1)
    assert i2v.config.in_channels == 2 * CHANNELS + 1
    assert torch.equal(velocity(i2v, x_t, sigma, cond, prefix), velocity(t2v, x_t, sigma, cond))


def test_a_network_has_the_sizes_of_its_configuration() -> None:
    sizes = {
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 0,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "patch_size_t": 2,
        "rope_axes_dim": (4, 6, 6),
    }
    network = build_transformer(TransformerConfig.model_validate(sizes), CHANNELS, TEXT, POOLED)
    assert sizes.items() <= dict(network.config).items()


def test_one_update_moves_the_new_channels_and_all_that_can_matter() -> None:
    i2v = expand_to_i2v(tiny_transformer()).train()
    before = {name: parameter.detach().clone() for name, parameter in i2v.named_parameters()}
    x_t, sigma, cond = tiny_inputs()
    velocity(i2v, x_t, sigma, cond, make_prefix(torch.randn_like(x_t), 1)).square().mean().backward()
    torch.optim.SGD(i2v.parameters(), lr=1e-3).step()
    moved = {name: (parameter - before[name]).abs() for name, parameter in i2v.named_parameters()}
    assert (moved["x_embedder.proj.weight"][:, CHANNELS:].flatten(1).amax(0) > 0).all()
    # a bias of the keys adds the same to all of a query's logits: the softmax, and so the model, does not see it
    assert all(name.endswith("to_k.bias") for name, change in moved.items() if not change.any())


def test_training_starts_from_the_zero_velocity() -> None:
    x_t, sigma, cond = tiny_inputs()
    fresh = build_transformer(CONFIG, CHANNELS, TEXT, POOLED)
    assert not velocity(fresh, x_t, sigma, cond).any()


def test_velocities_are_float32_also_where_the_network_computes_in_bf16() -> None:
    x_t, sigma, cond = tiny_inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert velocity(tiny_transformer(), x_t, sigma, cond).dtype == torch.float32


def test_guidance_embedding_starts_without_effect() -> None:
    teacher = tiny_transformer(image_condition=True)
    student = add_guidance_embedding(teacher)
    x_t, sigma, cond = tiny_inputs()
    prefix = make_prefix(x_t, 1)
    expected = velocity(teacher, x_t, sigma, cond, prefix)
    for w in (1.0, 6.0):
        assert torch.equal(velocity(student, x_t, sigma, cond, prefix, torch.full((3,), w)), expected)


def test_a_network_that_has_the_guidance_input_keeps_it() -> None:
    distilled = tiny_transformer(guidance_embeds=True)
    assert add_guidance_embedding(distilled) is distilled


def test_guidance_embedding_draws_only_the_new_branch_and_as_a_whole_network_would() -> None:
    teacher = tiny_transformer(image_condition=True)
    torch.manual_seed(5)
    student = add_guidance_embedding(teacher)
    torch.manual_seed(5)
    whole = build_transformer(CONFIG, CHANNELS, TEXT, POOLED, image_condition=True, guidance_embeds=True)
    for name in ("weight", "bias"):
        parameter = f"time_text_embed.guidance_embedder.linear_1.{name}"
        assert torch.equal(student.get_parameter(parameter), whole.get_parameter(parameter))
    assert_takes_over(student, teacher)


def assert_takes_over(network: torch.nn.Module, other: torch.nn.Module, new: tuple[str, ...] = ()) -> None:
    """The parameters that both have are the same memory, but for the new ones, and all can be trained."""
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in network.parameters())
    old = {name: parameter.data_ptr() for name, parameter in other.named_parameters()}
    moved = [name for name, p in network.named_parameters() if name in old and p.data_ptr() != old[name]]
    assert moved == list(new)


@pytest.mark.parametrize("w", [1.0, 6.0])
def test_folded_guidance_is_the_distilled_model_at_that_scale(w: float) -> None:
    distilled = tiny_transformer(guidance_embeds=True)
    folded = fold_guidance(distilled, w)
    x_t, sigma, cond = tiny_inputs()
    there = velocity(distilled, x_t, sigma, cond, None, torch.full((3,), w))
    elsewhere = velocity(distilled, x_t, sigma, cond, None, torch.full((3,), w + 2))
    torch.testing.assert_close(velocity(folded, x_t, sigma, cond), there)
    assert (there - elsewhere).abs().max() > 1e-4, "w must matter, or the test shows nothing"
    assert_takes_over(folded, distilled, new=("time_text_embed.timestep_embedder.linear_2.bias",))


def test_guidance_scale_keeps_its_precision_in_a_bf16_model() -> None:
    """1000*w = 6000 would be 6016 in bfloat16; w = 6 and 6.016 must stay apart."""
    model = tiny_transformer(guidance_embeds=True).to(torch.bfloat16)
    x_t, sigma, cond = tiny_inputs()
    seen: list[torch.Tensor] = []
    model.time_text_embed.time_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    assert cond.mask is not None
    cond = condition(TextEmbedding(cond.tokens.bfloat16(), cond.mask, cond.pooled.bfloat16()), None)
    velocity(model, x_t.bfloat16(), sigma, cond, None, torch.full((3,), 6.0))
    assert [value.tolist() for value in seen] == [(1000 * sigma).tolist(), [6000.0] * 3]
    assert fold_guidance(model, 6.0).dtype == torch.bfloat16


def test_prefix_is_zero_in_latent_space_where_nothing_is_known() -> None:
    latents = torch.randn(2, CHANNELS, 3, 2, 2)
    prefix = make_prefix(latents, torch.tensor([1, 2]))
    assert prefix.mask[:, 0, :, 0, 0].tolist() == [[1, 0, 0], [1, 1, 0]]
    assert torch.equal(prefix.latents[0, :, :1], latents[0, :, :1])
    assert prefix.latents[0, :, 1:].abs().sum() == 0
    dropped = prefix.dropped(torch.tensor([True, False]))
    assert dropped.mask[0].sum() == dropped.latents[0].abs().sum() == 0
    assert torch.equal(dropped.latents[1], prefix.latents[1])


def test_image_tokens_come_before_text_and_padding_stays_last() -> None:
    text = TextEmbedding(torch.zeros(1, 3, 8), torch.tensor([[True, True, False]]), torch.zeros(1, 8))
    cond = condition(text, torch.ones(1, 2, 8))
    assert cond.tokens[0, :, 0].tolist() == [1, 1, 0, 0, 0]
    assert cond.mask is not None
    assert cond.mask.tolist() == [[True, True, True, True, False]]


def test_padded_text_tokens_do_not_matter() -> None:
    model = tiny_transformer()
    x_t, sigma, cond = tiny_inputs()
    before = velocity(model, x_t, sigma, cond)
    cond.tokens[0, 4] = 1000.0
    torch.testing.assert_close(velocity(model, x_t, sigma, cond)[0], before[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_is_loaded_in_the_dtype_that_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = tiny_transformer()
    saved.save_pretrained(tmp_path)
    loaded = load_transformer(tmp_path, dtype).state_dict()
    assert all(torch.equal(loaded[name], value.to(dtype)) for name, value in saved.state_dict().items())
    assert {value.dtype for value in loaded.values()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_its_weights_a_network_has_the_same_tensors_and_reads_no_file_but_its_config(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tiny_transformer(image_condition=True, guidance_embeds=True).save_pretrained(tmp_path)
    whole = load_transformer(tmp_path, dtype)
    next(tmp_path.glob("*.safetensors")).unlink()
    empty = load_transformer(tmp_path, dtype, empty=True)
    assert (dict(empty.config), empty.training) == (dict(whole.config), whole.training)
    kinds = [{n: (t.shape, t.dtype, t.device) for n, t in one.state_dict().items()} for one in (empty, whole)]
    assert kinds[0] == kinds[1]
    assert [n for n, p in empty.named_parameters() if p.requires_grad] == [n for n, _ in whole.named_parameters()]


def test_loading_something_else_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load_transformer(tmp_path)
