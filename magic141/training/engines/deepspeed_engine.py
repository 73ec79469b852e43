"""DeepSpeed as an Engine: ZeRO stages 0 to 3, several engines in one process, with or without a GPU."""

from __future__ import annotations

import importlib
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magic141.accelerator import settle_accelerator
from magic141.environment import as_if_missing, temporary_environment
from magic141.training.config import OptimizerConfig
from magic141.training.engines.engine import Precision, autocast
from magic141.training.engines.optimizers import make_optimizer, set_learning_rate

if TYPE_CHECKING:
    from magic141.training.context import TrainContext

_TAG = "state"
REDUCE_ELEMENTS = 50_000_000
LIVE_ELEMENTS = 300_000_000


class DeepSpeedEngine:
    """A network with optimizer states (from ZeRO 1), gradients (from 2) and weights (3) split over the workers."""

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, num_steps: int, precision: Precision, context: TrainContext
    ) -> None:
        deepspeed = import_deepspeed(context.device)
        self.module = module
        self.num_updates = 0
        self.sharded = context.placement.zero_stage == 3
        self._config, self._num_steps, self._precision, self._context = config, num_steps, precision, context
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._trained = list(trained.values())
        self._deepspeed = deepspeed
        self._engine: Any = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(trained, config, context.world_size, fused=False),  # ZeRO repartitions its states
            config=deepspeed_config(config.max_grad_norm, precision, context),
            dist_init_required=False,
        )[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass."""
        return self._engine(*args, **kwargs)

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed-precision context."""
        return autocast(self._context.device, self._precision)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate gradients, averaged over workers after the last pass, or after each if gradients are split."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self) -> float:
        """Average, clip and update, all by DeepSpeed; a non-finite gradient updates nothing."""
        set_learning_rate(self._engine.optimizer, self.num_updates, self._num_steps, self._config)
        norm = self._unsplit_norm() if self._context.placement.zero_stage == 0 else None
        if norm is None or torch.isfinite(norm):  # with ZeRO 0, DeepSpeed would update all the same
            self._engine.step()
        else:
            self._engine.zero_grad()
        self.num_updates += 1
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights on rank 0, as copies in host memory; none elsewhere."""
        state: dict[str, Tensor] = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            with self._deepspeed.zero.GatheredParameters([value] if hasattr(value, "ds_id") else []):
                if self._context.rank == 0:
                    state[name] = value.detach().to("cpu", copy=True)
        return state

    def save(self, folder: Path) -> None:
        """Every worker's shard, without the frozen weights."""
        folder.mkdir(parents=True, exist_ok=True)
        counters = {"num_updates": self.num_updates}
        self._engine.save_checkpoint(str(folder), tag=_TAG, client_state=counters, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        path, counters = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        if path is None:
            raise ValueError(f"{folder}: no DeepSpeed checkpoint in it; delete the run's folder")
        self.num_updates = counters["num_updates"]

    def _unsplit_norm(self) -> Tensor:
        """The gradient norm under ZeRO 0, which keeps none; backward has already averaged over the workers."""
        return torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])


def split_weights(module: nn.Module, precision: Precision, context: TrainContext) -> None:
    """Splits rank 0's weights over the workers: each keeps its share, on its device.

    This happens one parameter at a time and before the engine is made, which would first move the whole network to the
    device: a network that has to be split may not fit there.
    """
    deepspeed = import_deepspeed(context.device)
    for buffer in module.buffers():
        buffer.data = buffer.to(context.device)
    deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config(0.0, precision, context))


def gathering(module: nn.Module, precision: Precision, context: TrainContext) -> nn.Module:
    """Wraps a network that is not trained so that its forward pass gathers the split weights as it needs them."""
    config = deepspeed_config(0.0, precision, context)
    deepspeed = import_deepspeed(context.device)
    engine: nn.Module = deepspeed.initialize(model=module, config=config, dist_init_required=False)[0]
    return engine


def forget_process_group() -> None:
    """Lets go of the group that DeepSpeed keeps for this process's later trainings; call it once that is destroyed."""
    from deepspeed.utils import groups

    groups._WORLD_GROUP = None


def import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed quietly for a network on `device`; on CPUs without its C++ communication op.

    That op needs a compiler to run.
    """
    settle_accelerator(device)
    _import_what_is_needed()
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    ops = getattr(deepspeed.ops, "__compatible_ops__", None)
    if device.type == "cpu" and isinstance(ops, dict):
        ops["deepspeed_shm_comm"] = False  # not public; plain gloo does the same work
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    return deepspeed


def _import_what_is_needed() -> None:
    """Imports DeepSpeed without MLflow and the compiler, which only its autotuner and its own Muon use.

    They would take every worker four seconds.
    """
    with as_if_missing("mlflow"), temporary_environment({"TORCHDYNAMO_DISABLE": "1"}):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


def deepspeed_config(max_grad_norm: float, precision: Precision, context: TrainContext) -> dict[str, Any]:
    """DeepSpeed's settings; weights stay in fp32 and bf16 means autocast, as in the other engines.

    Except that with bf16, workers send each other weights and gradients of linear layers in it, where DDP sends fp32.
    """
    zero: dict[str, Any] = {
        "stage": context.placement.zero_stage,
        # the default of 5e8 keeps a buffer for bf16 and one for fp32 gradients all the time: 2.8 GiB
        "reduce_bucket_size": REDUCE_ELEMENTS,
    }
    if context.placement.zero_stage == 3:
        # the default of 1e9 is 3.7 GiB in fp32, about three of the 13B network's double-stream blocks; fetching a block
        # again for its backward pass takes little time compared with attention over 67,000 tokens
        zero["stage3_max_live_parameters"] = zero["stage3_max_reuse_distance"] = LIVE_ELEMENTS
        # a small parameter kept whole would be exported as it is, not as the average that was put into its shard
        zero["stage3_param_persistence_threshold"] = 0
    if context.placement.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # required; the objectives make the batches
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW also updates offloaded states, and needs no compiler
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 1_000_000_000,
    }
