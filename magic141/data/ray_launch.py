"""Runs decoding and encoding on Ray Data: start, results in order, lost workers replaced."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.exceptions

from magic141.artifacts.fingerprint import CodeStamp
from magic141.cluster.address import ray_cluster
from magic141.cluster.session import ensure_ray, require_room
from magic141.data.config import DataConfig
from magic141.data.sources.chunks import Chunk
from magic141.data.sources.listing import VideoFile
from magic141.data.videos.decoding import StorageError
from magic141.data.workers import Encode, Probe, Render
from magic141.errors import UserError, first_line
from magic141.stage_log import StageLog

PROBE_BLOCK_VIDEOS = 16  # at most, that one task decodes; what it has found is kept when it ends
PROBE_BLOCKS_A_CPU = 4  # at least, if there are enough videos: these may differ much in length
RESTARTS = {"max_restarts": 8, "max_task_retries": 2}  # of a GPU's worker: the others need not load models again
# so small that workers of many runs, which stay until they have encoded all, leave a cluster CPUs to decode on; with
# whole ones, runs that start together could take them all, and wait for each other for ever
ENCODER_CPUS = 0.01
MAX_LOSSES = 3  # times in a row that workers are lost on the way to one chunk: then it is the chunk that kills them
NUM_RETRIES = 3  # of a task whose process died; Ray Data's own number is without end


def start_ray(config: DataConfig) -> None:
    """Starts Ray with ordered results (the same corpus gives the same bytes) and workers' errors passed on as such."""
    ensure_ray()
    require_room("data.num_workers", config.num_workers, {"num_gpus_per_worker": config.num_gpus_per_worker})
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True


def probe_results(folder: Path, videos: Sequence[VideoFile], config: DataConfig) -> Iterator[dict[str, Any]]:
    """The rows of `Probe`, in order, as its tasks end."""
    if not videos:
        return
    wanted = PROBE_BLOCKS_A_CPU * int(ray.cluster_resources().get("CPU", 1))
    num_blocks = max(-(-len(videos) // PROBE_BLOCK_VIDEOS), min(len(videos), wanted))
    rows = ray.data.from_items([video._asdict() for video in videos], override_num_blocks=num_blocks)
    probed = _mapped(rows, Probe(folder, config, _workers_code()), max_retries=NUM_RETRIES)
    num_done = 0
    try:
        for row in probed.iter_rows():
            yield row
            num_done += 1
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise UserError(
            f"data.path = {folder}: processes that read {videos[num_done].file}, or one of the next "
            f"{PROBE_BLOCK_VIDEOS}, died ({type(error).__name__}): remove it, or give them more memory"
        ) from error


def encoded_with_restarts(
    chunks: Sequence[Chunk], config: DataConfig, models: Path, log: StageLog
) -> Iterator[dict[str, Any]]:
    """`encoded_chunks`, resumed after the last finished chunk when a worker is lost, alone or with its machine."""
    num_done, num_losses = 0, 0
    while num_done < len(chunks):
        try:
            for row in encoded_chunks(chunks[num_done:], config, models):
                yield row
                num_done, num_losses = num_done + 1, 0
        except ray.exceptions.RayError as error:
            num_losses += 1
            if isinstance(error, ray.exceptions.RayTaskError):  # the worker's own
                raise
            if num_losses == MAX_LOSSES:
                raise UserError(
                    f"workers that encode {chunks[num_done].clips[0].source} died {num_losses} times in a row "
                    f"({type(error).__name__}): give them more memory, or leave that video out"
                ) from error
            log.note(f"an encoding worker was lost ({type(error).__name__}): continuing with new ones")
            start_ray(config)  # again, if it was a local Ray that died, and all workers with it


def encoded_chunks(chunks: Sequence[Chunk], config: DataConfig, models: Path) -> Iterator[dict[str, Any]]:
    """The rows of `Encode`, a chunk each, in order: decoding tasks stream into encoding actors on Ray Data."""
    items = [chunk.row for chunk in chunks]
    spare_cpus = int(ray.cluster_resources().get("CPU", 2)) - 1  # decoding keeps one busy
    wanted = min(config.num_workers, len(chunks))
    there = max(1, min(wanted, spare_cpus))
    pool = {"min_size": there, "max_size": wanted} if ray_cluster() else {"size": there}  # a cluster may still grow
    use_gpu = config.num_gpus_per_worker > 0
    # On CPUs: no restarts by Ray, which announces them with a false alarm; lost workers are replaced by
    # `encoded_with_restarts`.
    placement = {"num_gpus": config.num_gpus_per_worker} | RESTARTS if use_gpu else {"max_restarts": 0}
    code = _workers_code()
    rows = ray.data.from_items(items, override_num_blocks=len(items))
    rendered = _mapped(rows, Render(config, code), num_cpus=1, max_retries=NUM_RETRIES)
    encoded = _mapped(
        rendered,
        Encode,
        fn_constructor_args=(models, use_gpu, code),
        compute=ray.data.ActorPoolStrategy(**pool),
        num_cpus=ENCODER_CPUS,
        **placement,
    )
    yield from encoded.iter_rows()


def _mapped(rows: ray.data.Dataset, work: Any, **arguments: Any) -> ray.data.Dataset:
    """`rows.map`; retries and restarts have no named parameters yet, and Ray, pinned below 2.61, warns of others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        return rows.map(work, **arguments)


def _workers_code() -> CodeStamp:
    return CodeStamp.of([Probe.__module__])


@contextmanager
def plain_user_errors() -> Iterator[None]:
    """Re-raises a worker's UserError or StorageError with its own line only, without what Ray adds to it."""
    try:
        yield
    except (UserError, StorageError) as error:  # Ray makes its error a subclass of the worker's
        kind = UserError if isinstance(error, UserError) else StorageError
        raise kind(first_line(str(getattr(error, "cause", error)))) from None
