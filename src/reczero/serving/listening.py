"""Where a server listens, and who may ask: told before a model is loaded. Nothing heavy is imported here."""

import ipaddress
import os
import socket
from dataclasses import dataclass

from reczero.errors import UserError

KEY = "RECZERO_API_KEY"
LEAST_KEY = 16  # characters


@dataclass(frozen=True)
class Place:
    """A port that is held, not yet listened at. local: whether it is reached from this machine only; key: what clients
    must send, if anything."""

    socket: socket.socket
    local: bool
    key: str | None

    @property
    def url(self) -> str:
        host, port, *_ = self.socket.getsockname()
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def hold(host: str, port: int) -> Place:
    """Raises UserError where it can't be had, or others could reach it without a key."""
    local, key = is_local(host), _key()
    if not local and key is None:
        raise UserError(f"--host {host}: others can reach it, so set {KEY} in the environment, which they must send")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        held = socket.socket(family, kind)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart would have to wait
        held.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen at {host}, port {port} ({reason}): choose another --port or --host") from error
    return Place(held, local, key)


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key() -> str | None:
    key = os.environ.get(KEY)
    if not key:
        return None
    if len(key) < LEAST_KEY or not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY}: must have at least {LEAST_KEY} letters, digits and signs, and no spaces")
    return key
