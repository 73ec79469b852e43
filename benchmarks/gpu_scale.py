"""Seconds and memory of the 13B network on one GPU: attention, evaluations, int8 weights, a training pass, the codec.

    python benchmarks/gpu_scale.py --write-docs                                # a GPU of 140 GB for all rows
    python benchmarks/gpu_scale.py --config configs/demo.yaml --device cpu     # the same passes, small

Weights are drawn at random, as time and memory do not depend on them: no checkpoint is needed. The training pass is
that of DMD2's fake score, fp32 weights under a low-rank branch and bf16 autocast; a fully trained network runs the same
pass, and its gradients and optimizer states are split over the workers. A row that does not fit says so.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from documents import store_results, write_section
from environment import machine
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from flows.planning.estimates import InputSizes
from magic141.accelerator import give_back_freed_memory
from magic141.config import PipelineConfig, load_config
from magic141.evaluation.generation.performance import Usage, measure
from magic141.models.adapters import add_lora
from magic141.models.frames import num_latent_frames
from magic141.models.size import weight_megabytes
from magic141.models.transformer import (
    Conditioning,
    build_transformer,
    make_prefix,
    velocity,
)
from magic141.models.vae import VideoCodec
from magic141.quantization import quantize_linear_layers
from magic141.training.engines.engine import autocast
from magic141.training.memory import activation_bytes
from magic141.training.operations import EVALUATION, Passes, num_operations

if TYPE_CHECKING:
    from diffusers import HunyuanVideoTransformer3DModel

NUM_PASSES = 4  # the first of them warms up
ENOUGH_S = 20.0  # what has taken so long is not repeated; to warm up matters little to it


@dataclass(frozen=True)
class Row:
    """One pass, the median of a few.

    Attributes:
        what: the pass.
        seconds: wall time.
        weights_gb: GiB of the network's weights, where there is one.
        added_gb: GiB of a GPU that the pass takes beside them, at its peak.
        tflops: tera-operations in a second, of matrix products and attention; none where they are not counted.
        note: what else is to be said; of a pass that did not fit, only this.
    """

    what: str
    seconds: float | None = None
    weights_gb: float | None = None
    added_gb: float | None = None
    tflops: float | None = None
    note: str = ""


class Scale:
    """The passes of one config on one device."""

    def __init__(self, config: PipelineConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.sizes = InputSizes.of(config)
        self.num_tokens = self.sizes.num_tokens(config, config.data.sizes, image_condition=True)

    def rows(self) -> Iterator[Row]:
        """All of them, each network gone before the next is built."""
        yield from self.block_attention()
        yield from self.evaluations()
        yield from self.training_pass()
        if self.config.data.codec.kind == "hunyuan":
            yield from self.codec()

    def block_attention(self) -> Iterator[Row]:
        """Attention of one block alone, and with a mask that leaves nothing out."""
        model = self.config.model
        shape = (3, 1, model.num_attention_heads, self.num_tokens, model.attention_head_dim)
        query, key, value = torch.randn(shape, device=self.device, dtype=torch.bfloat16)
        ones = torch.ones(1, 1, 1, self.num_tokens, device=self.device, dtype=torch.bool)
        operations = self._operations(Passes(0, 1)) / (model.num_layers + model.num_single_layers)
        for what, mask in (("attention of one block", None), ("the same with a mask", ones)):
            call = partial(scaled_dot_product_attention, query, key, value, mask)
            yield self._measured(what, None, call, operations)

    def evaluations(self) -> Iterator[Row]:
        """One network evaluation for one window, without gradients; then the same with int8 weights."""
        network = self._network(torch.bfloat16).requires_grad_(False)
        call = self._evaluation(network)
        yield self._measured("evaluation, bf16 weights", network, call, self._operations())
        with self.device:
            quantize_linear_layers(network, self.config.quantize.exclude)
        give_back_freed_memory()
        yield self._measured("evaluation, int8 weights", network, call, self._operations())

    def training_pass(self) -> Iterator[Row]:
        """Forward and backward through every block, each computed again in the backward pass."""
        network = self._network(torch.float32)
        add_lora(network, self.config.distill_dmd2.lora_rank, seed=0)
        network.to(self.device).enable_gradient_checkpointing()
        evaluation = self._evaluation(network)

        def step() -> None:
            with autocast(self.device, "bf16"):
                loss = evaluation().square().mean()
            loss.backward()

        stage = self.config.distill_dmd2
        alone = {"gradient_checkpointing": True, "num_workers": 1, "sequence_parallel_size": 1}
        placement = stage.placement.model_copy(update=alone)
        one = stage.model_copy(update={"placement": placement, "batch_size": 1, "precision": "bf16"})
        calculated = activation_bytes(one, self.config.model, self.num_tokens) / 2**30
        operations = self._operations(Passes.training(checkpointing=True, frozen=True))
        note = f"activations by calculation: {calculated:.1f} GiB"
        yield self._measured("training pass, checkpointed", network, step, operations, note)

    def codec(self) -> Iterator[Row]:
        """A window's frames to latents, as on encoding workers, and back."""
        from diffusers import AutoencoderKLHunyuanVideo  # after magic141, which tells it of torchvision

        give_back_freed_memory()
        with self.device:
            codec = VideoCodec(AutoencoderKLHunyuanVideo().to(self.device, torch.float16))
        data, num_frames = self.config.data, self.config.model.window_frames
        frames = torch.randint(0, 256, (1, num_frames, data.height, data.width, 3), dtype=torch.uint8)
        latents = torch.randn(self._latent_size(), device=self.device)
        yield self._measured("codec, encode a window", codec.vae, lambda: codec.encode_video(frames))
        yield self._measured("codec, decode a window", codec.vae, lambda: codec.decode_video(latents))

    def _network(self, dtype: torch.dtype) -> HunyuanVideoTransformer3DModel:
        give_back_freed_memory()
        torch.manual_seed(0)
        with self.device, default_dtype(dtype):
            channels, text, pooled = self.sizes.channels, self.sizes.text_width, self.sizes.pooled_width
            network = build_transformer(self.config.model, channels, text, pooled, True, guidance_embeds=True)
            torch.nn.init.normal_(network.proj_out.weight, std=0.02)
        return network

    def _evaluation(self, network: HunyuanVideoTransformer3DModel) -> Callable[[], torch.Tensor]:
        dtype = next(network.parameters()).dtype
        x_t = torch.randn(self._latent_size(), device=self.device, dtype=dtype)
        width, text, pooled = self.sizes.text_width, self.sizes.num_text(self.config), self.sizes.pooled_width
        cond = Conditioning(
            torch.randn(1, text, width, device=self.device, dtype=dtype),
            None,
            torch.randn(1, pooled, device=self.device, dtype=dtype),
        )
        sigma, w = torch.full((1,), 0.5, device=self.device), torch.full((1,), 3.5, device=self.device)
        return lambda: velocity(network, x_t, sigma, cond, make_prefix(x_t, 1), w)

    def _latent_size(self) -> tuple[int, ...]:
        """Of one window, [1, C, T, h, w]."""
        data, sizes = self.config.data, self.sizes
        frames = num_latent_frames(self.config.model.window_frames, self.config.temporal_factor)
        return (1, sizes.channels, frames, data.height // sizes.factor, data.width // sizes.factor)

    def _operations(self, passes: Passes = EVALUATION) -> float:
        return num_operations(passes, self.config.model, self.num_tokens)

    def _measured(
        self, what: str, model: nn.Module | None, call: Callable[[], object], operations: float = 0.0, note: str = ""
    ) -> Row:
        give_back_freed_memory()
        try:
            usages = self._usages(call)
        except torch.OutOfMemoryError:
            return Row(what, note="does not fit")
        seconds = statistics.median(usage.wall_s for usage in usages[1:] or usages)
        added_mb = [usage.added_memory_mb for usage in usages if usage.added_memory_mb is not None]
        added_gb = max(added_mb) / 1024 if added_mb else None
        tflops = operations / seconds / 1e12 if operations else None
        weights_gb = weight_megabytes(model) / 1024 if model else None
        return Row(what, seconds, weights_gb, added_gb, tflops, note)

    def _usages(self, call: Callable[[], object]) -> list[Usage]:
        usages: list[Usage] = []
        while len(usages) < NUM_PASSES and sum(usage.wall_s for usage in usages) < ENOUGH_S:
            with measure() as usage:
                call()
            usages.append(usage)
        return usages


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What new floating-point tensors are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def table(rows: list[Row], scale: Scale) -> str:
    """Markdown."""
    where = torch.cuda.get_device_name(0) if scale.device.type == "cuda" else machine()
    head = f"`{scale.config.name}`, a window of {scale.num_tokens:,} tokens, {where}, torch {torch.__version__}:"
    lines = [head, "", "| | seconds | weights GiB | beside them GiB | TFLOP/s | |", "|---|--:|--:|--:|--:|---|"]
    for row in rows:
        figures = (row.seconds, row.weights_gb, row.added_gb, row.tflops)
        cells = ("-" if figure is None else f"{figure:.3g}" if figure < 100 else f"{figure:.0f}" for figure in figures)
        lines.append(f"| {row.what} | {' | '.join(cells)} | {row.note} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/hunyuan_13b.yaml")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--write-docs", action="store_true", help="also put the table into its document")
    arguments = parser.parse_args()
    scale = Scale(load_config(arguments.config), torch.device(arguments.device))
    rows = []
    for row in scale.rows():
        rows.append(row)
        print(row, flush=True)
    text = table(rows, scale)
    print(text)
    store_results("gpu_scale", text, config=arguments.config, rows=[asdict(row) for row in rows])
    if arguments.write_docs:
        write_section("gpu", text)


if __name__ == "__main__":
    main()
