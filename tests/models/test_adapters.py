from __future__ import annotations

import torch

from magic141.models.adapters import add_lora, merge_lora
from magic141.models.transformer import make_prefix, velocity
from tests.models.tiny import tiny_inputs, tiny_transformer


def test_a_merged_adapter_is_the_network_with_its_adapter() -> None:
    network = tiny_transformer(image_condition=True)
    add_lora(network, rank=4, name="branch", seed=0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    plain = tiny_transformer(image_condition=True, seed=5)
    plain.load_state_dict(merge_lora(network.state_dict(), "branch"))
    x_t, sigma, cond = tiny_inputs()
    prefix = make_prefix(x_t, 1)
    expected = velocity(network, x_t, sigma, cond, prefix)
    torch.testing.assert_close(velocity(plain, x_t, sigma, cond, prefix), expected, atol=1e-5, rtol=1e-4)
