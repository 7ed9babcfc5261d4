"""The address of Redis: one URL, read once into what redis-py and kombu are given alike.

Both read URLs too, but not alike: kombu encrypts only where its transport has a certain name, and each has its own spellings.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

_JUDGED = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_BOOLEANS = {"true": True, "false": False}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PARAMETERS = ("ssl_cert_reqs", "ssl_check_hostname", *_FILES)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is, and how its certificate is judged."""

    url: str  # without parameters
    tls: Mapping[str, Any]  # arguments of redis-py's encrypted connection, which is kombu's too; none: plain text

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL. Raises a `ValueError` that names what is wrong, and never repeats the URL: it may contain a password."""
        parts = _split(url)
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := [name for name in given if name not in _PARAMETERS]:
            raise ValueError(f"unknown parameter {unknown[0]!r}; there are {', '.join(_PARAMETERS)}")
        if parts.scheme == "rediss":
            return cls(_plain(parts), _tls(given))
        if given:
            raise ValueError(f"{next(iter(given))} is for rediss://, which encrypts; redis:// does not")
        return cls(_plain(parts), {})


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("the port is no number from 1 to 65535 (in a password write / ? # @ : as %2F %3F %23 %40 %3A)")
    if parts.scheme not in {"redis", "rediss"} or not url.startswith(f"{parts.scheme}://"):
        raise ValueError("this is not a URL like redis://... or rediss://...")
    if not parts.path.strip("/").isdecimal() and parts.path.strip("/"):
        raise ValueError("the database, after the host and a slash, is no number")
    return parts


def _plain(parts: SplitResult) -> str:
    """Spell a URL without parameters so that all readers agree on it."""
    name, password = (quote(unquote(text or ""), safe="") for text in (parts.username, parts.password))
    account = f"{name}:{password}@" if name or password else ""
    host = parts.hostname or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{account}{host}:{parts.port or 6379}/{parts.path.strip('/') or 0}"


def _tls(given: Mapping[str, str]) -> Mapping[str, Any]:
    """Return how to judge certificates; strictly, unless it is said."""
    required = given.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    checked = given.get("ssl_check_hostname", "true").lower()
    if required not in _JUDGED:
        raise ValueError(f"ssl_cert_reqs is one of {', '.join(_JUDGED)}")
    if checked not in _BOOLEANS:
        raise ValueError(f"ssl_check_hostname is one of {', '.join(_BOOLEANS)}")
    files = {name: given[name] for name in _FILES if name in given}
    _try(files)
    return {
        "ssl_cert_reqs": _JUDGED[required],
        "ssl_check_hostname": _BOOLEANS[checked] and required != "none",
        **files,
    }


def _try(files: Mapping[str, str]) -> None:
    """Load certificates as a connection will. Raises a `ValueError` that names the file."""
    context = ssl.create_default_context()
    loads: Mapping[str, Callable[[str], None]] = {
        "ssl_ca_certs": context.load_verify_locations,
        # With a password, or an encrypted key would have a service ask for one on its terminal.
        "ssl_certfile": lambda file: context.load_cert_chain(file, files.get("ssl_keyfile"), password=""),
    }
    if "ssl_keyfile" in files and "ssl_certfile" not in files:
        raise ValueError("ssl_keyfile is the key of an ssl_certfile, which is not there")
    for name, load in loads.items():
        try:
            if name in files:
                load(files[name])
        except OSError as error:  # also of a file that holds no certificate
            raise ValueError(f"{name}={files[name]} cannot be used: {error.strerror or error}") from None
