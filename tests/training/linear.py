"""The smallest objective with everything the loop handles: an engine, an EMA, random noise, validation, export."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magic141.errors import UserError
from magic141.training.batch_sampler import BatchSampler
from magic141.training.config import PlacementConfig, TrainConfig
from magic141.training.context import TrainContext
from magic141.training.engines.accumulation import Parts
from magic141.training.engines.ema import Ema
from magic141.training.engines.engine import Engine
from magic141.training.engines.make import make_engine
from tests.waiting import wait_for

NUM_POINTS, WIDTH = 64, 8


class Network(nn.Module):
    """A frozen matrix, a trained block matrix (for Muon) and a bias (for AdamW)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
        self.head = nn.Linear(WIDTH, 1)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks[0](self.base(x)) * self.scale)
        return y


@dataclass(frozen=True)
class LinearSpec:
    """What may go wrong, beside the config."""

    config: TrainConfig
    noise: float = 0.1
    mistake: str = ""
    crash_at: int | None = None
    kill_once_at: int | None = None
    kill_once_saving: int | None = None  # a checkpoint of this step, half of which is then written
    interrupt_at: int | None = None  # Ctrl-C in the launching process, which is seen before the step ends
    launcher: int = field(default_factory=os.getpid)
    bad_steps: tuple[int, ...] = ()
    first_step: int = 0
    step_s: float = 0.0

    def build(self, context: TrainContext) -> LinearRegression:
        if self.mistake:
            raise UserError(self.mistake)
        return LinearRegression(self, context)


class LinearRegression:
    """y = mean(x), with noise on x from the worker's global generator, so that resuming must restore it."""

    def __init__(self, spec: LinearSpec, context: TrainContext) -> None:
        self.spec, self.context = spec, context
        self.judged: list[int] = []
        self.first_step = self.current_step = spec.first_step
        config = spec.config
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(NUM_POINTS, WIDTH, generator=generator)
        self.parts = Parts.of(config)
        self.engine = make_engine(Network(), config.optimizer, config.num_steps, config.precision, context)
        self.ema = Ema(self.engine.module, config.ema_decay)
        self.sampler = BatchSampler(
            [torch.arange(NUM_POINTS)], config.clips_per_worker, context.share, context.num_shares, context.seed
        )

    @property
    def engines(self) -> Mapping[str, Engine]:
        return {"network": self.engine}

    def step(self, step: int) -> dict[str, Tensor | float]:
        if step == self.spec.crash_at:
            raise ZeroDivisionError("the objective broke")
        self.current_step = step
        time.sleep(self.spec.step_s)
        if step == self.spec.kill_once_at:
            self._kill_once()
        if step == self.spec.interrupt_at and self.context.is_main:
            self._interrupt()
        x = self.x[self.sampler.indices(step - self.first_step)]
        if step in self.spec.bad_steps:
            x[0] = float("inf")
        noisy = x + self.spec.noise * torch.randn_like(x)

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            with self.engine.autocast():
                loss = (self.engine(noisy[rows]) - x[rows].mean(1, keepdim=True)).square().mean()
            return loss, {"loss": loss}

        values = self.parts.accumulate(self.engine, loss_of)
        norm = self.engine.step()
        self.ema.update()
        return {**values, "grad_norm": norm}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        with self.ema.applied():
            error = self.engine.module(self.x + torch.randn_like(self.x)) - self.x.mean(1, keepdim=True)
        return {"validation_loss": float(error.square().mean())}

    def begin(self) -> dict[str, float]:
        return {}

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        self.judged.append(step)

    def require_sound(self) -> None:
        pass

    @property
    def replicated(self) -> tuple[str, ...]:
        return () if self.engine.sharded else ("ema",)

    def state_dict(self) -> dict[str, Any]:
        if self.current_step + 1 == self.spec.kill_once_saving:
            self._kill_once()
        return {"ema": self.ema.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state["ema"])

    def export(self, folder: Path) -> None:
        weights = self.ema.full_state_dict(self.engine)
        if self.context.is_main:
            torch.save({"ema": weights}, folder / "weights.pt")

    def _interrupt(self) -> None:
        (mark,) = self.context.run_dir.glob(".launch-*")
        os.kill(self.spec.launcher, signal.SIGINT)
        wait_for(mark.read_text, every_s=0.01)

    def _kill_once(self) -> None:
        """The last worker's process dies, the first time only."""
        marker = self.context.run_dir / "killed"
        if self.context.rank == self.context.world_size - 1 and not marker.exists():
            marker.touch()
            os._exit(1)


def linear_config(num_steps: int = 12, **placement: Any) -> TrainConfig:
    """A short run in this process, unless `placement` says otherwise."""
    settings = {"engine": "plain", "launcher": "local", "num_workers": 1, "log_every_steps": 2} | placement
    return TrainConfig.model_validate(
        {
            "num_steps": num_steps,
            "batch_size": 8,
            "optimizer": {"kind": "adamw", "learning_rate": 0.02, "warmup_steps": 2},
            "ema_decay": 0.9,
            "checkpoint_every_steps": 5,
            "validate_every_steps": 6,
            "placement": PlacementConfig.model_validate(settings),
        }
    )
