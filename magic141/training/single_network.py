"""Base of the objectives with one trained network: batches, validation loss, EMA, state and export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from magic141.data.dataset import ClipDataset
from magic141.models.adapters import save_network, train_lora
from magic141.training.batch_sampler import BatchSampler, own_share
from magic141.training.batches import Batch, BatchMaker
from magic141.training.config import SingleNetworkConfig
from magic141.training.context import TrainContext
from magic141.training.engines.accumulation import Parts
from magic141.training.engines.ema import Ema
from magic141.training.engines.engine import Engine
from magic141.training.engines.make import make_engine
from magic141.training.random_numbers import step_generator

MAX_VALIDATION_CLIPS = 64  # over all workers
RandomNumbers = Sequence[Tensor]  # of a batch's loss: times, noise and what else is random, [B, ...] each


class SingleNetworkObjective(ABC):
    """Batch, loss, backward pass, update, EMA; subclasses define the loss of a batch."""

    first_step = 0

    def __init__(
        self,
        network: HunyuanVideoTransformer3DModel,
        maker: BatchMaker,
        data: Path,
        config: SingleNetworkConfig,
        context: TrainContext,
    ) -> None:
        self.context, self.maker = context, maker
        if config.lora_rank:
            train_lora(network, config.lora_rank, context.seed)
        self.engine = make_engine(network, config.optimizer, config.num_steps, config.precision, context)
        self.ema = Ema(self.engine.module, config.ema_decay)
        self.sampler = BatchSampler.of(maker.dataset, config, context)
        self.parts = Parts.of(config)
        self.validation = replace(
            maker, dataset=ClipDataset.open(data, "validation"), text_dropout=0.0, image_dropout=0.0
        )

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The engine of the one network."""
        return {"network": self.engine}

    def maker_at(self, step: int) -> BatchMaker:
        """Makes the batch of `step`; the same for all steps unless a subclass overrides it."""
        return self.maker

    @abstractmethod
    def draw(self, x0: Tensor, rng: torch.Generator) -> RandomNumbers:
        """Draws the random numbers of the loss for clips x0 [B, C, T, h, w]."""

    @abstractmethod
    def loss(self, batch: Batch, drawn: RandomNumbers) -> Tensor:
        """The loss of a batch, or of a part of it, with a gradient for the engine's network."""

    def step(self, step: int) -> dict[str, Tensor | float]:
        """One optimizer step."""
        rng = step_generator(self.context.seed, step, self.context.share)
        batch = self.maker_at(step).make(self.sampler.indices(step), rng).to(self.context.device)
        drawn = self.draw(batch.x0, rng)

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            with self.engine.autocast():
                loss = self.loss(batch.part(rows), [values[rows] for values in drawn])
            return loss, {"loss": loss}

        losses = self.parts.accumulate(self.engine, loss_of)
        grad_norm = self.engine.step()
        self.ema.update()
        return {**losses, "grad_norm": grad_norm}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The averaged network's loss on this worker's validation clips, always with the same noise and times."""
        rng = step_generator(self.context.seed, -1, self.context.share)
        total, rows = 0.0, self.validation_rows()
        with self.ema.applied(), self.engine.autocast():
            for clips in rows.split(self.sampler.batch_size_per_worker):
                batch = self.validation.make(clips, rng).to(self.context.device)
                drawn = self.draw(batch.x0, rng)
                for part in self.parts.slices(len(clips)):  # more than in training may not fit
                    loss = self.loss(batch.part(part), [values[part] for values in drawn])
                    total += len(clips[part]) * float(loss)
        return {"validation_loss": total / len(rows)}

    def validation_rows(self) -> Tensor:
        """This worker's validation clips."""
        dataset = self.validation.dataset
        return own_share(dataset, min(MAX_VALIDATION_CLIPS, len(dataset)), self.context)

    def begin(self) -> dict[str, float]:
        """Nothing: these losses need no beginning to be read."""
        return {}

    def judge(self, step: int, values: Mapping[str, float]) -> None:  # noqa: B027 (a hook)
        """Does nothing: the last average is the result."""

    def require_sound(self) -> None:  # noqa: B027 (a hook)
        """Does nothing: nothing has been judged."""

    @property
    def replicated(self) -> tuple[str, ...]:
        """The EMA, unless it is split like the network."""
        return () if self.engine.sharded else ("ema",)

    def state_dict(self) -> dict[str, Any]:
        """The EMA; the engine saves the rest."""
        return {"ema": self.ema.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.ema.load_state_dict(state["ema"])

    def export(self, folder: Path) -> None:
        """Writes the averaged network as a diffusers folder `transformer`."""
        state = self.ema.full_state_dict(self.engine)
        if self.context.is_main:
            save_network(self.engine.module, state, folder / "transformer")
