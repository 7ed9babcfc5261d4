"""SSRF guard: the URLs and addresses that the farm may call for a client. Pure: it neither resolves names nor connects.

A client's URL must not reach what only this network can reach: neighbours, loopback, a cloud's metadata service.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from shared.errors import BlockedUrl

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_CHARS = 2048
_PORTS = {"http": 80, "https": 443}
# What RFC 3986 allows, less what only confuses parsers: no spaces, quotes, backslashes, controls or letters beyond ASCII.
_URL_CHARS = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
# A last label of digits, or 0x…, makes the whole host a number to inet_aton: 2130706433, 0x7f.1 and 0177.1 are 127.0.0.1.
_NUMERIC_END = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)\.?$")

# Reached from inside a cloud only, though some of them look public.
_METADATA = frozenset(
    ip_address(text)
    for text in ("168.63.129.16", "100.100.100.200", "192.0.0.192", "169.254.169.254", "fd00:ec2::254", "fd20:ce::254")
)
# What `FARM_ALLOW_PRIVATE_URLS` opens: this machine, private networks, carriers' shared space.
_OWN = tuple(
    ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7")
)
# Younger than the tables of older Pythons, or global on paper only.
_NEVER_PUBLIC = tuple(ip_network(text) for text in ("192.88.99.0/24", "2001::/23", "3fff::/20"))
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_ISATAP = (0x00005EFE, 0x02005EFE)


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL: where to connect, and the path to ask for."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme, host and port, normalised. URLs of one origin share a receiver."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str, *, allow_private: bool) -> Target:
    """Parse a URL. Raises `BlockedUrl` with the reason.

    This checks a host that is an address. A name is not resolved here: the caller must check each of its addresses.
    """
    if len(url) > MAX_URL_CHARS:
        raise BlockedUrl(f"The URL is longer than {MAX_URL_CHARS} characters.")
    if not _URL_CHARS.fullmatch(url):
        raise BlockedUrl(
            "The URL contains characters that must be percent-encoded, or a host that must be in punycode."
        )
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").lower()
    except ValueError as error:
        raise BlockedUrl("The URL is not valid; write it like https://host.example/path.") from error
    if parts.scheme.lower() not in _PORTS:
        raise BlockedUrl("Only http and https URLs are allowed.")
    if "@" in parts.netloc:
        raise BlockedUrl("The URL must not contain a user or a password; put a token into the path or the query.")
    if port == 0:
        raise BlockedUrl("Port 0 is not allowed.")
    scheme = parts.scheme.lower()
    target = Target(
        scheme, host, port or _PORTS[scheme], (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    )
    if "[" in parts.netloc and ":" not in host:
        raise BlockedUrl("The host in brackets is not an IPv6 address.")
    _judge_host(host, allow_private=allow_private)
    return target


def permitted(address: Address, *, allow_private: bool) -> bool:
    """Whether the farm may connect to an address.

    Addresses that carry another one inside (IPv4-mapped, NAT64, 6to4, ISATAP) need both to be permitted. With
    `allow_private` this network and this machine are permitted too, but never link-local addresses nor metadata services.
    """
    return all(_permitted(one, allow_private=allow_private) for one in _unwrapped(address))


def _judge_host(host: str, *, allow_private: bool) -> None:
    if ":" in host or _NUMERIC_END.search(host):
        try:
            address = ip_address(host)
        except ValueError:
            raise BlockedUrl(
                "The host is a number in an unusual form; write an IP address as 192.0.2.1 or [2001:db8::1]."
            ) from None
        if getattr(address, "scope_id", None) or not permitted(address, allow_private=allow_private):
            raise BlockedUrl(refusal(host))
    elif not _HOST.fullmatch(host) or len(host) > 253:
        raise BlockedUrl("The URL has no valid host; write it like https://host.example/path.")
    elif not allow_private and (host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")):
        raise BlockedUrl(refusal(host))


def refusal(host: str) -> str:
    """Return the message for a blocked host. It hides the addresses of a name from the client."""
    return f"{host} is not on the public internet; FARM_ALLOW_PRIVATE_URLS lets the farm call addresses of its own network."


def _unwrapped(address: Address) -> Iterator[Address]:
    """Yield an address and every IPv4 address that it embeds."""
    if isinstance(address, IPv4Address):
        yield address
        return
    inner = list(_embedded(address))
    # The wrappings that only translate are as good as what they wrap; they are in no public range themselves.
    if not (address.ipv4_mapped or address in _NAT64 or address in _NAT64_LOCAL):
        yield address
    yield from inner


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    value = int(address)
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address.sixtofour:
        yield address.sixtofour
    if (value >> 32) & 0xFFFFFFFF in _ISATAP or address in _NAT64 or address in _NAT64_LOCAL:
        yield IPv4Address(value & 0xFFFFFFFF)


def _permitted(address: Address, *, allow_private: bool) -> bool:
    if address in _METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    return (allow_private and _within(address, _OWN)) or _public(address)


def _public(address: Address) -> bool:
    if _within(address, _NEVER_PUBLIC) or (isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST):
        return False
    return address.is_global and not address.is_reserved


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
