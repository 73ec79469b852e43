"""`magic141 serve`: serves a published model as a web application on Ray Serve."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flows.records.models import find_model
from magic141.cluster.address import ray_cluster
from magic141.config.errors import validated
from magic141.config.files import with_settings
from magic141.errors import UserError
from magic141.serving.config import ServingConfig

WATCH_SECONDS = 5.0  # between looks at whether the model is still served


def serve(
    workspace: Path,
    model: str,
    host: str,
    port: int,
    settings: Sequence[str] = (),
    replace: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Args:
        workspace: folder of the runs.
        model: models:/NAME@ALIAS, models:/NAME/VERSION, a run id, or a folder.
        host: address to listen on; a loopback address cannot be reached from other machines.
        port: port to listen on.
        settings: FIELD=VALUE for ServingConfig.
        replace: replace the application that the Ray cluster already serves.
        say: prints a line for the user.

    Raises:
        UserError: if the model, a setting or the address is invalid, or the address is taken; nothing was started.
        RuntimeError: if Ray dies or the application is removed, so that whatever watches this process can restart it.
    """
    config = validated(ServingConfig, with_settings({}, settings, example="max_seconds=10"))
    if not ray_cluster():  # on a cluster, Ray listens where the cluster's nodes are
        require_free(host, port)
    folder, name = find_model(workspace, model)
    from magic141.cluster.session import ensure_ray
    from magic141.serving import deployment

    card = deployment.describe(name, folder)
    say(f"starts Ray Serve with {card.model}")
    ensure_ray()  # before _until_stopped, because Ray sets its own signal handlers
    if not replace:
        deployment.require_unserved()
    deployed_s = None
    with _until_stopped():
        try:
            deployed_s = deployment.start(folder, card, config, host, port)
            say(f"{card.model} answers at http://{host}:{port}/ (Ctrl-C stops it)")
            while deployment.is_served():
                time.sleep(WATCH_SECONDS)
            raise RuntimeError(f"{model}: not served any more, as Ray or its application has ended; start it again")
        finally:
            deployment.stop(deployed_s)
    say("stopped")


def require_free(host: str, port: int) -> None:
    """Raises UserError if the address cannot be listened on; Ray would report it much later, at length."""
    if not 0 < port < 65536:
        raise UserError(f"--port {port}: expected a port from 1 to 65535; choose another one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another port, or an address "
            "of this machine"
        ) from None


@contextmanager
def _until_stopped() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the block; further ones are ignored, not to disturb the shutdown."""
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
