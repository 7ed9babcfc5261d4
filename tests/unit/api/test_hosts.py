"""Names that mean the farm, and names that lead to it only for a page that pretends."""

import socket

import pytest
from pydantic import ValidationError

from api.gate.hosts import Host, Hosts, same
from shared.settings import Settings

HERE = "10.1.2.3"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("farm.example", Host("farm.example")),
        ("Farm.Example.:8000", Host("farm.example", 8000)),
        ("127.0.0.1:80", Host("127.0.0.1", 80)),
        ("[::1]:8000", Host("::1", 8000)),
        *[
            (bad, None)
            for bad in ("", "a b", "u@localhost", "localhost:80:80", "localhost/x", "[::1", "localhost:", "::1")
        ],
    ],
)
def test_a_host_is_read(text: str, host: Host | None) -> None:
    assert Host.read(text) == host


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "a.localhost",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        HERE,
        socket.gethostname().lower(),
        "bound",
    ],
)
def test_names_of_this_machine_mean_the_farm(name: str) -> None:
    assert Hosts("", bound="bound").include(Host(name), HERE)


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "localhost.evil.example",
        "notlocalhost",
        "10.1.2.4",
        "0.0.0.0",  # noqa: S104 - a name, not bound
        "127.0.0.1.evil.example",
        "2130706433",
    ],
)
def test_other_names_do_not(name: str) -> None:
    assert not Hosts("").include(Host(name), HERE)


def test_names_that_are_listed_do_and_stars_stand_for_subdomains() -> None:
    hosts = Hosts("Farm.example, *.studio.example")
    known = {
        name: hosts.include(Host(name), None)
        for name in ("farm.example", "a.farm.example", "a.b.studio.example", "studio.example", "xstudio.example")
    }
    assert known == {
        "farm.example": True,
        "a.farm.example": False,
        "a.b.studio.example": True,
        "studio.example": False,
        "xstudio.example": False,
    }
    assert Hosts("*").include(Host("evil.example"), None)


@pytest.mark.parametrize(
    ("origin", "host", "is_same"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("http://localhost:8001", "localhost:8000", False),
        ("https://farm.example", "farm.example", True),
        ("https://farm.example", "farm.example:443", True),
        ("https://farm.example:8443", "farm.example", False),
        ("http://evil.example", "farm.example", False),
    ],
)
def test_an_origin_is_the_farms_own_with_name_and_port(origin: str, host: str, is_same: bool) -> None:
    page, asked = Host.of_origin(origin), Host.read(host)
    assert page is not None
    assert asked is not None
    assert same(page, asked, origin.partition("://")[0]) is is_same


@pytest.mark.parametrize("origin", ["null", "file://", "chrome-extension://abc", "evil.example", ""])
def test_other_origins_are_no_web_pages(origin: str) -> None:
    assert Host.of_origin(origin) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed_hosts": "https://farm.example"},
        {"allowed_hosts": "farm.example/sd"},
        {"allowed_hosts": "*evil.example"},
        {"trusted_proxies": "10.0.0.0/99"},
        {"trusted_proxies": "proxy"},
        {"root_path": "sd"},
        {"root_path": "/sd/../x"},
        {"root_path": "//evil.example"},
        {"root_path": "/s d"},
    ],
    ids=str,
)
def test_a_setting_that_would_do_nothing_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_a_prefix_has_no_slash_at_its_end() -> None:
    assert Settings(root_path="/sd/").root_path == "/sd"
    assert Settings(root_path="/").root_path == ""
