"""Configs of the CLIP model and of the image index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from magic141.frozen import MOST_STEPS, FrozenConfig, names_file, placement, source_or_name


class ClipConfig(FrozenConfig):
    """The open_clip model: trained on the corpus (tiny) or loaded."""

    kind: Literal["train", "pretrained"] = Field("train", description="train a tiny model, or load pretrained weights")
    model: str = Field("ViT-L-14", description="open_clip model name (kind pretrained)")
    pretrained: str | None = source_or_name(description="open_clip tag or path of a state dict (kind pretrained)")
    release: str | None = Field(
        None,
        description="open_clip tag of the weights that the file `pretrained` holds: its normalisation and activation",
    )
    embed_dim: int = Field(64, ge=8, description="width of the shared space (kind train)")
    head_width: int = Field(32, ge=1, description="width of an attention head (kind train)")
    num_steps: int = Field(800, ge=1, le=MOST_STEPS, description="contrastive steps (kind train)")
    batch_size: int = Field(64, ge=2, description="image-caption pairs per step")
    learning_rate: float = Field(1e-3, gt=0, description="peak rate of AdamW, decayed to zero by a cosine")

    @model_validator(mode="after")
    def _width_divides(self) -> ClipConfig:
        if self.kind == "train" and self.embed_dim % self.head_width:
            raise ValueError(
                f"embed_dim = {self.embed_dim}: not divisible by head_width = {self.head_width}; use a multiple of it"
            )
        return self

    @model_validator(mode="after")
    def _weights_for_pretrained(self) -> ClipConfig:
        if self.kind == "pretrained" and not self.pretrained:
            raise ValueError(
                "pretrained is not set: kind = pretrained needs a tag that open_clip has for its model, or the path of "
                "a state dict"
            )
        if self.release and not names_file(self.pretrained or ""):
            raise ValueError(
                f"release = {self.release}: says which weights a file holds, but pretrained = {self.pretrained} is no "
                "path of one; use release = null"
            )
        return self


class IndexConfig(FrozenConfig):
    """The FAISS index over the corpus's images."""

    kind: Literal["flat", "ivf", "hnsw"] = Field("flat", description="flat: exact; ivf, hnsw: approximate, if large")
    num_lists: int = Field(64, ge=1, description="inverted lists (ivf)")
    num_probes: int = Field(16, ge=1, description="lists searched per query (ivf)")
    num_neighbours: int = Field(32, ge=4, description="graph degree (hnsw)")
    num_queries: int = Field(128, ge=1, description="held-out captions on which recall is measured")
    num_threads: int = placement(2, ge=1, description="FAISS threads")
