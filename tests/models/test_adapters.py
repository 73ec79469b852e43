from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from magic141.models.adapters import LORA, add_lora, merge_lora, share_frozen, train_lora
from magic141.models.transformer import make_prefix, velocity
from tests.models.tiny import tiny_inputs, tiny_transformer


def test_only_the_branches_train_in_float32_one_for_every_linear_layer_of_the_blocks() -> None:
    network = tiny_transformer().bfloat16()
    linear = {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    add_lora(network, rank=4, seed=0)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    expected = {name for name in linear if "transformer_blocks." in name}
    assert trained.keys() == {f"{name}.lora_{part}.branch.weight" for name in expected for part in "AB"}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}


def test_a_network_with_a_branch_also_learns_its_new_inputs() -> None:
    network = tiny_transformer(image_condition=True, guidance_embeds=True).bfloat16()
    train_lora(network, rank=4, seed=0)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    others = {name.rpartition(".")[0] for name in trained if ".lora_" not in name}
    embedder = "time_text_embed.guidance_embedder"
    assert others == {"x_embedder.proj", f"{embedder}.linear_1", f"{embedder}.linear_2"}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    train_lora(tiny_transformer(), rank=4, seed=0)  # without w


@pytest.mark.parametrize("has_branch", [False, True])
def test_frozen_weights_are_shared_and_trained_ones_are_not(has_branch: bool) -> None:
    owner, network = (tiny_transformer(image_condition=True, guidance_embeds=True).bfloat16() for _ in range(2))
    train_lora(owner, rank=4, seed=0)
    network.requires_grad_(False)
    if has_branch:
        add_lora(network, rank=2, seed=1)
    with torch.no_grad():
        for parameter in owner.parameters():
            if parameter.requires_grad:
                parameter.add_(1)  # has been trained
    before = {name: value.clone() for name, value in network.state_dict().items()}
    share_frozen(network, owner)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    owned = {parameter.data_ptr() for parameter in owner.parameters()}
    own = {name for name, parameter in network.named_parameters() if parameter.data_ptr() not in owned}
    embedder = "time_text_embed.guidance_embedder"
    assert {name.rpartition(".")[0] for name in own if ".lora_" not in name} == {
        "x_embedder.proj",
        f"{embedder}.linear_1",
        f"{embedder}.linear_2",
    }
    assert any(".lora_" in name for name in own) == has_branch


def test_a_merged_adapter_is_the_network_with_its_adapter() -> None:
    network = tiny_transformer(image_condition=True)
    add_lora(network, rank=4, seed=0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    plain = tiny_transformer(image_condition=True, seed=5)
    plain.load_state_dict(merge_lora(network.state_dict()))
    x_t, sigma, cond = tiny_inputs()
    prefix = make_prefix(x_t, 1)
    expected = velocity(network, x_t, sigma, cond, prefix)
    torch.testing.assert_close(velocity(plain, x_t, sigma, cond, prefix), expected, atol=1e-5, rtol=1e-4)


def test_a_branch_is_added_in_float32_to_a_weight_in_bfloat16() -> None:
    """W + BA = -256 + 0.25, which is no bfloat16: it would be rounded to -256."""
    tensors = {"base_layer": [[-256.0]], "lora_A.branch": [[0.5]], "lora_B.branch": [[0.5]]}
    state = {f"layer.{name}.weight": torch.tensor(value).bfloat16() for name, value in tensors.items()}
    merged = merge_lora(state)
    assert merged.keys() == {"layer.weight"}
    assert merged["layer.weight"].item() == -255.75


def test_a_branch_takes_its_layers_input_and_keeps_no_copy_of_it_in_float32() -> None:
    network = tiny_transformer()
    add_lora(network, 4, 0)
    inputs: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, module in network.named_modules():
        layer, found, part = name.rpartition(".base_layer" if name.endswith(".base_layer") else f".lora_A.{LORA}")
        if found and not part:
            kind = LORA if name.endswith(LORA) else "layer"
            module.register_forward_pre_hook(
                lambda _, given, layer=layer, kind=kind: inputs[layer].update({kind: given[0]})
            )
    with torch.autocast("cpu", torch.bfloat16):
        velocity(network, *tiny_inputs())
    assert all(given[LORA] is given["layer"] for given in inputs.values())
    assert torch.bfloat16 in {given[LORA].dtype for given in inputs.values()}


def test_a_new_adapter_is_the_seeds_and_leaves_the_process_its_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    adapters = []
    for state, seed in ((5, 1), (6, 1), (5, 2)):
        network = tiny_transformer()
        torch.manual_seed(state)
        add_lora(network, 4, seed)
        adapters.append(torch.cat([p.flatten() for name, p in network.named_parameters() if "lora_A" in name]))
        assert torch.equal(torch.rand(3), expected) == (state == 5)
    assert torch.equal(adapters[0], adapters[1])
    assert not torch.equal(adapters[0], adapters[2])
