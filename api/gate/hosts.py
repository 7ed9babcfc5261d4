"""The names under which a farm answers: clients write one into `Host`, browsers that of a page into `Origin`. Pure.

A site can let its own name lead to this machine (DNS rebinding); only the name then tells that its pages are strangers.
"""

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from shared.settings import words

_HOST = re.compile(r"(?:\[(?P<ip6>[0-9a-f:.]+)\]|(?P<name>[^\s\[\]:/?#@\\]+))(?::(?P<port>\d{1,5}))?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Host:
    """A name or address in lower case, without brackets and final dot, and the port if one is written."""

    name: str
    port: int | None = None

    @classmethod
    def read(cls, text: str) -> "Host | None":
        """Read a `Host` header; None for what is none."""
        found = _HOST.fullmatch(text.strip())
        if found is None:
            return None
        name = (found["ip6"] or found["name"]).lower().removesuffix(".")
        return cls(name, int(found["port"]) if found["port"] else None)

    @classmethod
    def of_origin(cls, origin: str) -> "Host | None":
        """Read an `Origin` header, with the port that its scheme means; None for `null` and for other schemes."""
        scheme, _, rest = origin.partition("://")
        host = cls.read(rest)
        if host is None or scheme not in _PORTS:
            return None
        return cls(host.name, host.port or _PORTS[scheme])


class Hosts:
    """The names of this machine, that to which the server is `bound`, and those that `FARM_ALLOWED_HOSTS` lists."""

    def __init__(self, listed: str, *, bound: str = "") -> None:
        names = [name.lower().removesuffix(".") for name in words(listed)]
        self._anything = "*" in names
        # Browsers ask nobody for the address of localhost and of what is below it.
        self._domains = (".localhost", *(name[1:] for name in names if name.startswith("*.")))
        self.listed = frozenset(name for name in names if "*" not in name)
        self._own = frozenset(name.lower() for name in ("localhost", socket.gethostname(), bound) if name)

    def include(self, host: Host, address: str | None) -> bool:
        """Whether the farm answers to this name on a connection to its own `address`."""
        name = host.name
        return (
            self._anything
            or name in self.listed
            or name.endswith(self._domains)
            or name in self._own
            or name == address
            or _is_local(name, address)
        )


def same(origin: Host, host: Host, scheme: str) -> bool:
    """Whether an origin is the very one that a `Host` header of a request by `scheme` names."""
    return origin.name == host.name and origin.port == (host.port or _PORTS.get(scheme))


def _is_local(name: str, address: str | None) -> bool:
    """Whether an IP address means this machine: a loopback one, or the one that the client has connected to."""
    named = _ip(name)
    return named is not None and (named.is_loopback or named == _ip(address or ""))


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    # A socket for both families shows IPv4 clients as such.
    return getattr(found, "ipv4_mapped", None) or found
