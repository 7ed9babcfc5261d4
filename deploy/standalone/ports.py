"""Choice of free ports on this machine, and addresses of servers on it.

Picked ports lie below the range from which the kernel takes the ports of outgoing connections. In that range a client that
keeps reconnecting to an engine that just died can be given the engine's own port, and then blocks its restart.
"""

import ipaddress
import random
import socket
from contextlib import suppress

from deploy.standalone.program import StartFailed

PICKED_FROM = range(15_000, 30_000)
ATTEMPTS = 200


def pick(host: str, remembered: int | None = None, rng: random.Random | None = None) -> int:
    """Return the remembered port if it is free, else another free one. Raises `StartFailed` if there is none."""
    if remembered is not None and is_free(host, remembered):
        return remembered
    rng = rng or random.Random()  # noqa: S311 - a port is no secret
    for port in rng.sample(PICKED_FROM, ATTEMPTS):
        if is_free(host, port):
            return port
    raise StartFailed(f"No free port was found on {host}.")


def is_free(host: str, port: int) -> bool:
    """Whether a server can listen on the port now."""
    with suppress(OSError):
        listen(host, port).close()
        return True
    return False


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen with SO_REUSEADDR, as servers do: it fails on other listeners, not on connections in TIME_WAIT."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(1)
    except OSError:
        server.close()
        raise
    return server


def local_address(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def public_address(host: str) -> str:
    """Return the best guess of the address at which other machines reach a server that listens on `host`."""
    if local_address(host) == host:
        return host
    family, beyond = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((beyond, 9))  # a datagram socket sends nothing by connecting; it only picks a route
        return str(probe.getsockname()[0])
    return local_address(host)


def authority(host: str, port: int) -> str:
    """Return host and port in URL syntax, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
