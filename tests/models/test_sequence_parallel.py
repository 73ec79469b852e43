"""Workers that split the tokens of their clips compute what one worker computes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from magic141.errors import UserError
from magic141.models.sequence_parallel import all_video_tokens, split_sequence
from magic141.models.transformer import Conditioning, make_prefix, velocity
from tests.models.tiny import CHANNELS, POOLED, TEXT, tiny_inputs, tiny_transformer
from tests.training.forks import run_together

pytestmark = pytest.mark.slow
TEXTS = {  # lengths of two clips' texts; none divides by the number of workers, nor do the video's 10 tokens
    "padded": [7, 5],
    "without padding": [7, 7],
    "shorter than the workers are many": [1, 1],
}


def texts(lengths: list[int]) -> Conditioning:
    """Texts of these lengths; without a mask, where they are equal."""
    rng = torch.Generator().manual_seed(2)
    tokens, pooled = torch.randn(2, max(lengths), TEXT, generator=rng), torch.randn(2, POOLED, generator=rng)
    return Conditioning(tokens, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None], pooled).trimmed()


def evaluate(lengths: list[int], group: dist.ProcessGroup | None, checkpointing: bool) -> dict[str, Tensor]:
    """The velocity, a block's output, and the gradients of a loss of both with respect to inputs and weights."""
    model = tiny_transformer(image_condition=True, guidance_embeds=True, num_attention_heads=6).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    if group is not None:
        split_sequence(model, group)
    features: list[Tensor] = []

    def keep(_block: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        features.append(all_video_tokens(output[0], inputs[3]))

    model.transformer_blocks[-1].register_forward_hook(keep)
    rng = torch.Generator().manual_seed(1)
    x_t, sigma = torch.randn(2, CHANNELS, 5, 2, 4, generator=rng).requires_grad_(), torch.rand(2, generator=rng)
    prefix, w = make_prefix(x_t.detach(), 1), torch.tensor([1.0, 2.0])
    v = velocity(model, x_t, sigma, texts(lengths), prefix, w)
    loss = v.square().mean() + features[0].square().mean()
    with torch.no_grad():  # a pass over other texts, before checkpointed blocks are computed again
        velocity(model, x_t, sigma, texts([9, 8]), prefix, w)
    loss.backward()
    assert x_t.grad is not None
    weights = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"velocity": v.detach(), "features": features[0].detach(), "input": x_t.grad, **weights}


def evaluate_together(rank: int, folder: Path) -> None:
    """Every worker writes its outputs, the gradient of its input, and the mean of the workers' gradients of weights."""
    assert dist.group.WORLD is not None
    for name, lengths in TEXTS.items():
        for checkpointing in (False, True):
            found = evaluate(lengths, dist.group.WORLD, checkpointing)
            for part, value in found.items():
                if part not in ("velocity", "features", "input"):
                    dist.all_reduce(value)
                    value /= dist.get_world_size()
            torch.save(found, folder / f"{name}-{checkpointing}-{rank}.pt")


def test_attention_without_the_others_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_to_all_single", lambda received, *_args, **_group: received.zero_())
    model = tiny_transformer()
    split_sequence(model, cast(dist.ProcessGroup, SimpleNamespace(size=lambda: 2, rank=lambda: 0)))
    velocity(model, *tiny_inputs())
    model.transformer_blocks[0].register_forward_pre_hook(
        lambda _block, inputs: (*inputs[:3], inputs[3].as_subclass(Tensor), *inputs[4:])
    )
    with pytest.raises(UserError, match="leaves out the tokens of other workers; unset DIFFUSERS_ATTN_BACKEND"):
        velocity(model, *tiny_inputs())


@pytest.fixture(scope="module", params=[2, 3])
def worker_files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """What two or three workers compute together."""
    folder = tmp_path_factory.mktemp("together")
    run_together(evaluate_together, request.param, folder)
    return folder, request.param


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_workers_that_split_tokens_compute_what_one_does(
    worker_files: tuple[Path, int], text: str, checkpointing: bool
) -> None:
    folder, num_workers = worker_files
    expected = evaluate(TEXTS[text], None, checkpointing)
    for rank in range(num_workers):
        found = torch.load(folder / f"{text}-{checkpointing}-{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
