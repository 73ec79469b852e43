"""Configs of a served model: limits of requests, queue and replicas."""

from __future__ import annotations

from pydantic import Field

from magic141.frozen import FrozenConfig

MIN_SECONDS = 0.1  # of a video; no shorter one is made
MOST_PIXELS = 178_956_970  # of a picture; PIL refuses more


class Limits(FrozenConfig):
    """The largest request that is answered."""

    max_image_bytes: int = Field(10_000_000, ge=1, description="largest picture file, in bytes")
    max_image_pixels: int = Field(40_000_000, ge=1, le=MOST_PIXELS, description="largest width x height of the picture")
    max_prompt_chars: int = Field(1000, ge=1, description="longest prompt, in characters")
    max_seconds: float = Field(20.0, ge=MIN_SECONDS, description="longest video, in seconds")


class ServingConfig(Limits):
    """The web application: its limits, its queue and its replicas."""

    max_queued: int = Field(8, ge=1, description="requests that wait for a replica; more are answered with 503")
    timeout_seconds: float = Field(600.0, gt=0, description="limit for waiting and generating; then 504")
    num_replicas: int = Field(1, ge=1, description="copies of the model; each makes one video at a time")
    gpus_per_replica: float | None = Field(
        None, ge=0, description="GPUs that Ray reserves for a copy; null: 1 if the cluster has GPUs, else 0"
    )
    cpus_per_replica: float = Field(1.0, ge=0, description="CPUs that Ray reserves for a copy")
