"""Makes pieces of stage `generate` on Ray workers, each with its own network."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING

from magic141.artifacts.fingerprint import CodeStamp
from magic141.errors import UserError
from magic141.evaluation.generation.model_folders import ModelFolders
from magic141.evaluation.generation.pieces import Piece, make_pieces
from magic141.evaluation.generation.workload import Advance, Workload

if TYPE_CHECKING:
    import ray

STOP_SECONDS = 30


def make_on_ray(work: Workload, folders: ModelFolders, pieces: Sequence[Piece], advance: Advance) -> None:
    """Makes pieces as Ray tasks, `generate.num_workers` at a time, longest first, so that no long one comes last.

    Workers read and write the workspace, which all of them must see, as in training. They are sent `work` as it is: it
    comes from `Workload.for_workers`.

    Raises:
        UserError: if a worker met a user's mistake, or more GPUs are asked for than there are.
    """
    from magic141.cluster.session import ensure_ray, require_room

    ensure_ray()
    require_room("generate.num_workers", work.config.num_workers, {"gpus_per_worker": work.config.gpus_per_worker})
    import ray

    code = CodeStamp.of(["magic141.evaluation.generation.generate"])
    # sent once, not with every task; pickled, so that a worker checks that it has the same code before loading it
    shared = ray.put(pickle.dumps((work, folders)))
    task = ray.remote(num_cpus=1, num_gpus=work.config.gpus_per_worker)(_make)
    waiting = sorted(pieces, key=lambda piece: piece.num_evaluations)
    running: dict[ray.ObjectRef, Piece] = {}
    try:
        while waiting or running:
            while waiting and len(running) < work.config.num_workers:
                piece = waiting.pop()
                running[task.remote(code, shared, pickle.dumps(piece))] = piece
            for done in ray.wait(list(running))[0]:
                piece = running.pop(done)
                if mistake := ray.get(done):
                    raise UserError(mistake)
                advance(piece.num_evaluations)
    finally:  # after a failure or Ctrl-C, no task may go on writing into the pieces' folders
        _stop(list(running))


def _stop(tasks: Sequence[ray.ObjectRef]) -> None:
    """Interrupts tasks, and ends by force only those that do not stop.

    Ray aborts this process if a task is ended by force in the moment in which it ends by itself.
    """
    import ray

    for task in tasks:
        ray.cancel(task)
    stopped = ray.wait(list(tasks), num_returns=len(tasks), timeout=STOP_SECONDS)[0] if tasks else []
    for task in set(tasks).difference(stopped):
        ray.cancel(task, force=True)


def _make(code: CodeStamp, shared: bytes, piece: bytes) -> str | None:
    """Runs on a Ray worker; returns the message of a user's mistake, as an exception would lose its class in Ray."""
    try:
        code.require()
        work, folders = pickle.loads(shared)
        folders.refuse_days_on_cpu(work.config, work.device)
        make_pieces(work, folders, [pickle.loads(piece)], advance=lambda done: None)
    except UserError as mistake:
        return str(mistake)
    return None
