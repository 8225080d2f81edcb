"""Around the application: who may ask, how much and how slowly, what is counted and logged."""

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .engine import Engine
from .listening import is_local

log = logging.getLogger("reczero.serving")
MOST_BYTES = 1 << 20  # of a request's body
READ_SECONDS = 30.0  # in which a body must have come
OPEN = ("/", "/healthz", "/readyz", "/openapi.json")  # what needs no key, and what lies in /page/
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
HEADERS = {
    b"content-security-policy": b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    b"form-action 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}
_HOST = re.compile(r"(\[(?P<v6>[0-9a-f:]+)\]|(?P<name>[\w.-]+))(:[0-9]{1,5})?")
_TOO_LARGE = f"the body is larger than {MOST_BYTES:,} bytes"


def problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


class Metrics:
    def __init__(self, registry: CollectorRegistry, engine: Engine):
        labels = ("method", "route", "status")
        self.requests = Counter("reczero_requests", "Requests that were answered.", labels, registry=registry)
        self.seconds = Histogram(
            "reczero_request_seconds", "From a request's arrival to the end of its answer.", ("route",),
            registry=registry, buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160),
        )  # fmt: skip
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "reczero_queue_length": ("Requests that wait.", lambda: engine.waiting),
            "reczero_queue_limit": ("Requests that may wait.", lambda: engine.queue),
            "reczero_predictions_under_way": ("Predictions that are being written.", lambda: engine.under_way),
            "reczero_ready": ("1 while predictions are made.", lambda: float(engine.alive)),
            "reczero_predictions": ("Predictions so far.", lambda: engine.predictions),
            "reczero_tokens": ("Tokens of them.", lambda: engine.tokens),
        }
        for name, (about, read) in gauges.items():
            Gauge(name, about, registry=registry).set_function(read)


class Guard:
    """What comes before the application sees a request, and after it has answered.

    key: what must be sent, if any, but for what is `OPEN`; looked at before the body. local: only requests that name
    this machine as their host are answered. No defect of ours shows more than that it happened.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, key: str | None, local: bool):
        self.app, self.metrics, self.local = app, metrics, local
        self.wanted = _digest(f"Bearer {key}") if key else None

    def refused(self, scope: Scope) -> JSONResponse | None:
        """What is said to a request that is not heard."""
        if self.local and not _names_this_machine(_header(scope, b"host")):
            return problem(400, "this server answers requests to this machine only")
        if self.wanted and scope["path"] not in OPEN and not scope["path"].startswith("/page/"):
            kind, _, given = _header(scope, b"authorization").partition(" ")
            if not hmac.compare_digest(_digest(f"{kind.capitalize()} {given.strip()}"), self.wanted):
                headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
                return problem(401, "send the key as Authorization: Bearer KEY", headers)
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > MOST_BYTES:  # what comes is counted, too
            return problem(413, _TOO_LARGE, {"Connection": "close"})
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, read_all, size = time.monotonic(), 0, False, 0

        async def reading() -> Message:
            nonlocal read_all, size
            if read_all:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, began + READ_SECONDS - time.monotonic()))
            except TimeoutError as error:
                raise HTTPException(408, "the body did not come in time", {"Connection": "close"}) from error
            read_all = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > MOST_BYTES:
                raise HTTPException(413, _TOO_LARGE, {"Connection": "close"})
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in HEADERS.items() if h[0] not in given)]
            await send(message)

        try:
            await (self.refused(scope) or self.app)(scope, reading, sending)
        except Exception as error:
            log.error("a defect: %s", type(error).__name__)
            if not status:
                await problem(500, "an internal error")(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            seconds = time.monotonic() - began
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            log.info("%s %s %s %.3f s", method, route, status or "cut off", seconds)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _names_this_machine(host: str) -> bool:
    """Whether a Host header is one that only a client of this machine sends: no other name may lead here."""
    found = _HOST.fullmatch(host)
    return found is not None and is_local(found["v6"] or found["name"])
