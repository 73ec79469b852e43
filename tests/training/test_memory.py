"""Estimated bytes: what an engine really holds, and how ZeRO divides it."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from magic141.models.adapters import add_lora
from magic141.models.config import TransformerConfig
from magic141.models.sequence_parallel import split_sequence
from magic141.models.size import num_lora_parameters
from magic141.models.transformer import build_transformer
from magic141.training.config import CfgDistillationConfig, FlowMatchingConfig, OptimizerConfig, PlacementConfig
from magic141.training.context import TrainContext
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.engines.ema import Ema
from magic141.training.engines.plain_engine import PlainEngine
from magic141.training.memory import activation_bytes, state_bytes

ADAMW = OptimizerConfig(kind="adamw")
NUM, SIZES = 1000, TransformerConfig()


def placed(**fields: object) -> PlacementConfig:
    return PlacementConfig.model_validate({"engine": "deepspeed", "num_workers": 4, **fields})


def test_is_what_an_engine_holds(tmp_path: Path) -> None:
    module = nn.Linear(40, 25, bias=False)
    placement = PlacementConfig(engine="plain", num_workers=1)
    engine = PlainEngine(module, ADAMW, 2, "fp32", TrainContext(0, 1, torch.device("cpu"), tmp_path, 0, placement))
    ema = Ema(module, 0.9)
    engine.backward(engine(torch.ones(1, 40)).sum())
    gradients = [parameter.grad for parameter in module.parameters()]
    engine.step()
    states = [value for state in engine._optimizer.state.values() for value in state.values() if value.ndim]
    held = [*module.parameters(), *gradients, *states, *ema.state_dict()["shadow"].values()]
    config = FlowMatchingConfig(optimizer=ADAMW, placement=placement)
    assert state_bytes(config, SIZES, NUM) == sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.parametrize(
    ("placement", "per_weight"),
    [
        (placed(engine="ddp"), 4 * (1 + 1 + 2 + 1)),
        (placed(zero_stage=1), 4 * (1 + 1 + 3 / 4 + 1)),
        (placed(zero_stage=2), 4 * (1 + 1 / 4 + 3 / 4 + 1)),
        (placed(zero_stage=3), 4 * (1 + 1 + 3 + 1) / 4),
        (placed(zero_stage=1, offload_optimizer=True), 4 * (1 + 1 + 0 + 1)),
        (placed(zero_stage=3, offload_optimizer=True), 4 * (1 + 0 + 0 + 1) / 4),
    ],
)
def test_zero_divides_what_it_splits(placement: PlacementConfig, per_weight: float) -> None:
    config = FlowMatchingConfig(optimizer=ADAMW, placement=placement)
    assert state_bytes(config, SIZES, NUM) == NUM * per_weight


def test_distillation_holds_more_than_one_network() -> None:
    placement = placed(zero_stage=3)
    trained = 4 * (1 + 1 + 3 + 1) / 4
    share = 4 / 4
    cfg = CfgDistillationConfig(optimizer=ADAMW, placement=placement)
    lora, full = (
        Dmd2Config(fake_score=fake, a_weak=0, optimizer=ADAMW, placement=placement) for fake in ("lora", "full")
    )
    assert state_bytes(cfg, SIZES, NUM) == NUM * (trained + share)
    assert state_bytes(cfg.model_copy(update={"precision": "bf16"}), SIZES, NUM) == NUM * (trained + share / 2)
    whole = cfg.model_copy(update={"placement": placed(zero_stage=2)})
    assert state_bytes(whole, SIZES, NUM) == NUM * (4 * (1 + 1 / 4 + 3 / 4 + 1) + 4)
    adapter = num_lora_parameters(SIZES, lora.lora_rank)
    not_averaged = 4 * (1 + 1 + 3) / 4  # a fake score
    assert state_bytes(lora, SIZES, NUM) == NUM * (trained + share) + adapter * not_averaged
    assert state_bytes(full, SIZES, NUM) == NUM * (trained + share + not_averaged)
    half = lora.model_copy(update={"precision": "bf16"})
    assert state_bytes(half, SIZES, NUM) == NUM * (trained + share / 2) + adapter * not_averaged
    both = lora.model_copy(update={"generator_lora_rank": lora.lora_rank})
    assert state_bytes(both, SIZES, NUM) == NUM * 2 * share + adapter * (trained + not_averaged)
    both_in_half = both.model_copy(update={"precision": "bf16"})
    assert state_bytes(both_in_half, SIZES, NUM) == NUM * share + adapter * (trained + not_averaged)


SHARED: dict[str, Any] = {"generator_lora_rank": 8, "placement": placed(engine="ddp"), "optimizer": ADAMW}


@pytest.mark.parametrize(
    ("options", "num_bases"),
    [
        ({"real_score": "cfg_distilled"}, 1),
        ({"real_score": "teacher"}, 2),
        ({"start": "teacher"}, 1),
        ({"real_score": "cfg_distilled", "placement": placed(zero_stage=3)}, 2 / 4),
    ],
    ids=["one base", "two bases", "the teacher is both", "split weights"],
)
def test_branches_of_one_network_hold_it_once_unless_it_is_split(options: dict[str, Any], num_bases: float) -> None:
    config = Dmd2Config.model_validate(SHARED | options)
    none, all_of_them = (state_bytes(config, SIZES, num) for num in (0, NUM))
    assert all_of_them - none == 4 * NUM * num_bases


def test_a_branch_is_all_that_has_optimizer_states() -> None:
    placement, adapter = placed(engine="ddp"), num_lora_parameters(SIZES, 8)
    config = FlowMatchingConfig(lora_rank=8, optimizer=ADAMW, placement=placement)
    assert state_bytes(config, SIZES, NUM) == 4 * NUM + adapter * 4 * (1 + 1 + 2 + 1)
    half = CfgDistillationConfig(lora_rank=8, optimizer=ADAMW, placement=placement, precision="bf16")
    assert state_bytes(half, SIZES, NUM) == 2 * NUM + adapter * 4 * (1 + 1 + 2 + 1), "the teacher is the student's base"
    split = half.model_copy(update={"placement": placed(zero_stage=3)})
    assert state_bytes(split, SIZES, NUM) == 2 * (2 * NUM / 4) + adapter * 4 * (1 + 1 + 3 + 1) / 4


@pytest.mark.parametrize(("clips_per_pass", "clips"), [(None, 4), (4, 4), (2, 2), (1, 1)])
def test_activations_are_of_the_clips_of_one_pass(clips_per_pass: int | None, clips: int) -> None:
    config = FlowMatchingConfig(batch_size=16, optimizer=ADAMW, placement=placed(clips_per_pass=clips_per_pass))
    one = FlowMatchingConfig(batch_size=4, optimizer=ADAMW, placement=placed())
    assert activation_bytes(config, SIZES, NUM) == clips * activation_bytes(one, SIZES, NUM)


def test_workers_that_split_tokens_hold_their_part_of_the_activations() -> None:
    config, split = (
        FlowMatchingConfig(
            batch_size=8, optimizer=ADAMW, placement=placed(clips_per_pass=2, sequence_parallel_size=size)
        )
        for size in (1, 2)
    )
    assert split.clips_per_worker == 2 * config.clips_per_worker
    assert activation_bytes(split, SIZES, NUM) == activation_bytes(config, SIZES, NUM) / 2


def test_a_discriminator_holds_the_activations_of_one_pass_at_a_time() -> None:
    config = Dmd2Config(optimizer=ADAMW, placement=placed(zero_stage=1))
    adversarial = config.model_copy(update={"adversarial_weight": 0.1})
    assert activation_bytes(adversarial, SIZES, NUM) == activation_bytes(config, SIZES, NUM)


class Held(TorchDispatchMode):
    """Follows the bytes of the tensors that operations return, while these are alive; those of `model` do not count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.seen = weakref.WeakSet(parameter.untyped_storage() for parameter in model.parameters())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return result

    def _change(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


def test_of_a_clip_that_two_workers_share_each_holds_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_to_all_single", lambda received, *_args, **_group: received.zero_())
    pair = cast(dist.ProcessGroup, SimpleNamespace(size=lambda: 2, rank=lambda: 0))
    config = FlowMatchingConfig(
        batch_size=1, placement=PlacementConfig(num_workers=2, sequence_parallel_size=2, gradient_checkpointing=True)
    )
    sizes, frames, height, width, words = TransformerConfig(num_layers=2, num_single_layers=2), 5, 24, 24, 8
    model = build_transformer(sizes, 4, text_width=16, pooled_width=16)
    split_sequence(model, pair)
    peak = peak_of_a_pass(model, 1, (frames, height, width), words, recompute=True)
    assert activation_bytes(config, sizes, frames * height * width + words) == pytest.approx(peak, rel=0.2)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("blocks", [(2, 2), (1, 5)])
@pytest.mark.parametrize(
    ("kind", "options"), [(FlowMatchingConfig, {}), (FlowMatchingConfig, {"lora_rank": 8}), (Dmd2Config, {})], ids=str
)
def test_activations_are_those_of_the_real_network(
    kind: Any, options: dict[str, int], recompute: bool, blocks: tuple[int, int]
) -> None:
    sizes = TransformerConfig(num_layers=blocks[0], num_single_layers=blocks[1])
    frames, height, width, words = 5, 24, 24, 8
    config = kind(batch_size=2, placement=PlacementConfig(num_workers=1, gradient_checkpointing=recompute), **options)
    has_branch = kind is Dmd2Config or "lora_rank" in options  # the fake score's pass, which takes most
    with nullcontext() if has_branch else FakeTensorMode():  # in which PEFT cannot add branches
        model = build_transformer(sizes, 4, text_width=16, pooled_width=16)
        if has_branch:
            add_lora(model, 8, seed=0)
        peak = peak_of_a_pass(model, 2, (frames, height, width), words, recompute)
    assert activation_bytes(config, sizes, frames * height * width + words) == pytest.approx(peak, rel=0.2)


def peak_of_a_pass(model: Any, batch: int, latent_size: tuple[int, int, int], words: int, recompute: bool) -> int:
    """Bytes that a forward and a backward pass hold at most, beside weights and their gradients."""
    for parameter in filter(lambda one: one.requires_grad, model.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda done: setattr(done, "grad", None))
    if recompute:
        model.enable_gradient_checkpointing()
    inputs = {
        "hidden_states": torch.ones(batch, 4, *latent_size),
        "timestep": torch.ones(batch),
        "encoder_hidden_states": torch.ones(batch, words, 16),
        "encoder_attention_mask": torch.ones(batch, words, dtype=torch.bool),
        "pooled_projections": torch.ones(batch, 16),
    }
    with Held(model) as held:
        model(**inputs)[0].square().mean().backward()
    return int(held.peak)
