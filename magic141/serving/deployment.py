"""Deploys the application on Ray Serve: model replicas with a bounded queue, and the web application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, RayServeException

from magic141.cluster.address import ray_cluster
from magic141.cluster.session import is_alive, require_room
from magic141.config.errors import validated
from magic141.errors import UserError
from magic141.serving.app import BusyError, ModelCard, build_app
from magic141.serving.config import ServingConfig
from magic141.serving.requests import Video, VideoRequest

APP, REPLICA = "magic141", "Student"
_NO_SERVE = (RayServeException, ActorDiedError)  # it has not started yet; somebody has shut it down
MAX_OPEN_REQUESTS = 200  # that the web application handles at once; videos wait in the replicas' own queue


class Replica:
    """One copy of the model, in its own process."""

    def __init__(self, folder: str, num_gpus: float) -> None:
        from magic141.serving.student import Student  # not at the top: the web application makes no videos

        self._student = Student.load(Path(folder), num_gpus)

    async def animate(self, request: VideoRequest) -> Video:
        """Generates in a thread, so that this process can answer Ray's health checks meanwhile.

        A thread cannot be stopped: if a request is cancelled, this replica stays occupied until its thread ends. The
        next request therefore waits in Ray's queue, where it is counted and can be cancelled.
        """
        making = asyncio.ensure_future(asyncio.to_thread(self._student.animate, request))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait({making})
            raise


class Web:
    """The web application, which passes checked requests to the replicas."""

    def __init__(self, replicas: Any, card: ModelCard, config: ServingConfig) -> None:
        self._replicas = replicas
        self._card = card
        self._config = config

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Builds the application; Ray calls this in the process that serves it."""
        return build_app(self._animate, _count_ready, self._card, self._config)

    async def _animate(self, request: VideoRequest) -> Video:
        response = self._replicas.animate.remote(request)
        try:
            video: Video = await response
        except BackPressureError:
            raise BusyError from None
        except asyncio.CancelledError:  # timed out, or the client has gone
            response.cancel()
            raise
        return video


async def _count_ready() -> int:
    status = await asyncio.to_thread(serve.status)
    app = status.applications.get(APP)
    deployment = app.deployments.get(REPLICA) if app else None
    return int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0


def application(folder: Path, card: ModelCard, config: ServingConfig) -> Any:
    """The Serve application for an exported folder; Ray must be running."""
    gpus = _gpus_per_replica(config)
    replicas = serve.deployment(Replica).options(
        name=REPLICA,
        num_replicas=config.num_replicas,
        max_ongoing_requests=1,
        max_queued_requests=config.max_queued,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": gpus},
    )
    web = serve.deployment(serve.ingress()(Web)).options(
        name="Web", max_ongoing_requests=MAX_OPEN_REQUESTS, ray_actor_options={"num_cpus": 0}
    )
    return web.bind(replicas.bind(str(folder), gpus), card, config)


def _gpus_per_replica(config: ServingConfig) -> float:
    if config.gpus_per_replica is not None:
        return config.gpus_per_replica
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def describe(model: str, folder: Path) -> ModelCard:
    """The description of a model that the application shows.

    Raises:
        UserError: if the folder is not an exported student.
    """
    from magic141.export import load_bundle_info

    info = load_bundle_info(folder)
    fields = info.model_dump(include={"height", "width", "fps", "num_steps", "more_sizes"})
    return ModelCard(model=model, window_seconds=info.window_frames / info.fps, **fields)


def build(args: Mapping[str, Any]) -> Any:
    """The application for a Serve config file (`import_path: magic141.serving.deployment:build`).

    Args:
        args: `model`, the exported folder on every node, and fields of ServingConfig.
    """
    fields = dict(args)
    folder = fields.pop("model", "")
    if not folder:
        raise UserError("args.model: not set, but required; name the folder of an exported student")
    config = validated(ServingConfig, fields, "args")
    return application(Path(folder), describe(folder, Path(folder)), config)


def start(folder: Path, card: ModelCard, config: ServingConfig, host: str, port: int) -> float:
    """Starts the application; once it answers, returns its deployment time, by which `stop` recognises it.

    Raises:
        UserError: if this machine has no room for the replicas (a cluster may still grow).
    """
    each = {"cpus_per_replica": config.cpus_per_replica, "gpus_per_replica": _gpus_per_replica(config)}
    require_room("num_replicas", config.num_replicas, each)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the caller reports what matters
    serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
    try:
        serve.run(application(folder, card, config), name=APP)
    except RuntimeError as error:
        raise RuntimeError(_reason() or str(error)) from error
    deployed_s: float = serve.status().applications[APP].last_deployed_time_s
    return deployed_s


def _reason() -> str:
    """Why a copy of the model did not start, which Ray tells in the status alone: the last line of its traceback."""
    with suppress(*_NO_SERVE):
        application = serve.status().applications.get(APP)
        told = [part.message.strip() for part in application.deployments.values()] if application else []
        return "; ".join(text.splitlines()[-1] for text in told if text)
    return ""


def require_unserved() -> None:
    """Raises UserError if the cluster at RAY_ADDRESS already serves this application, which Ray would replace.

    To replace it on purpose, or if it was left behind, the user passes --replace.
    """
    if ray_cluster() and APP in serve.status().applications:
        raise UserError(
            f"Ray cluster {ray_cluster()}: it serves an application {APP} already; end that `magic141 serve`, or take "
            "its place with --replace"
        )


def is_served() -> bool:
    """Whether the application is there: a local Ray must run, which nobody else uses; on a cluster others may end it.

    True also while Ray replaces a copy that has died.
    """
    if not ray_cluster():
        return is_alive()
    with suppress(*_NO_SERVE):
        return APP in serve.status().applications
    return False


def stop(deployed_s: float | None) -> None:
    """Ends a local Ray, and all that it serves; on the cluster at RAY_ADDRESS removes the application.

    Serve is ended on a cluster, too, if no other application is left. A local one is not asked to: what stops this
    process may have stopped Ray's daemons as well (systemd and Slurm signal all processes at once), and a call to dead
    ones blocks for a minute, then ends this process.

    Args:
        deployed_s: what `start` returned; an application deployed in its place since is kept. None if `start` did not
            return: removes any.
    """
    if ray_cluster():
        _withdraw(deployed_s)
    ray.shutdown()  # of a cluster, only disconnects


def _withdraw(deployed_s: float | None) -> None:
    with suppress(*_NO_SERVE):
        served = serve.status().applications.get(APP)
        if served and deployed_s in (None, served.last_deployed_time_s):
            serve.delete(APP)
        if not serve.status().applications:
            serve.shutdown()
