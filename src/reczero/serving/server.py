"""The process around the application: where it listens, who may ask, how it stops."""

import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from reczero.errors import UserError

from .app import create_app
from .engine import engine_of
from .predictor import Predictor

KEY = "RECZERO_API_KEY"
LEAST_KEY = 16  # characters


def serve(
    predictor: Predictor, host: str, port: int, *, queue: int, batch_size: int, time_limit: float,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Serves until SIGTERM or Ctrl-C, and then answers what it has accepted first. Raises UserError where it can't."""
    local, key = is_local(host), key_of_environment()
    if not local and key is None:
        raise UserError(f"--host {host}: others can reach it, so set {KEY} in the environment, which they must send")
    listening = _listen(host, port)
    app = create_app(
        predictor, engine_of(predictor.answering, queue, batch_size), key=key, time_limit=time_limit, local=local
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("reczero.serving").setLevel(logging.INFO)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, backlog=2048,
        timeout_graceful_shutdown=int(time_limit) + 5, timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    say(f"serving {predictor.answering.name} at http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C stops)")
    signal.signal(signal.SIGTERM, lambda *_: None)  # the server has its own; this one is called when it has stopped
    uvicorn.Server(config).run(sockets=[listening])


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_of_environment() -> str | None:
    """The key that clients must send. Raises UserError for one that is no key."""
    key = os.environ.get(KEY)
    if not key:
        return None
    if len(key) < LEAST_KEY or not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY}: must have at least {LEAST_KEY} letters, digits and signs, and no spaces")
    return key


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen at {host}, port {port} ({reason}): choose another --port or --host") from error
