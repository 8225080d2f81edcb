"""The process around the application: how it runs, and how it stops."""

import logging
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from .app import create_app
from .engine import engine_of
from .listening import Place
from .predictor import Predictor


def serve(
    predictor: Predictor, place: Place, *, queue: int, batch_size: int, time_limit: float, say: Callable[[str], None]
) -> None:
    """Serves until SIGTERM or Ctrl-C, and then answers what it has accepted first."""
    engine = engine_of(predictor.answering, queue, batch_size)
    app = create_app(predictor, engine, key=place.key, time_limit=time_limit, local=place.local)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("reczero.serving").setLevel(logging.INFO)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, backlog=2048,
        timeout_graceful_shutdown=int(time_limit) + 5, timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: None)  # the server has its own; this one is called when it has stopped
    _Server(config, lambda: say(f"serving {predictor.answering.name} at {place.url} (Ctrl-C stops)")).run(
        [place.socket]
    )


class _Server(uvicorn.Server):
    """Says so once it listens."""

    def __init__(self, config: uvicorn.Config, listens: Callable[[], None]):
        super().__init__(config)
        self._listens = listens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listens()
