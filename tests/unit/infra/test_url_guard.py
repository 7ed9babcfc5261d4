"""Which URLs and addresses may be called: the nasty ones may not, however they are dressed."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BlockedUrl
from shared.infra.url_guard import parse, permitted

PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"]
OWN = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("::1", "fc00::1", "fdff::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
]
NEVER = [
    *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
    *("100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"),
    *("0.0.0.0", "0.1.2.3", "::", "255.255.255.255", "240.0.0.1", "224.0.0.1", "239.255.255.250", "ff02::1"),  # noqa: S104
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "192.88.99.1", "192.0.0.1"),
    *("2001:db8::1", "3fff::1", "2001:0:808:808::", "2001:10::1", "100::1", "fec0::1", "::7f00:1", "::8.8.8.8"),
    *("64:ff9b:2::1", "2002:a9fe:a9fe::1"),
]
SMUGGLERS = ["2002:7f00:1::", "2002:c0a8:101::1", "2606:4700::5efe:127.0.0.1"]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_permitted(text: str) -> None:
    assert permitted(ip_address(text), allow_private=False)
    assert permitted(ip_address(text), allow_private=True)


@pytest.mark.parametrize("text", OWN)
def test_own_networks_are_permitted_only_when_allowed(text: str) -> None:
    assert not permitted(ip_address(text), allow_private=False)
    assert permitted(ip_address(text), allow_private=True)


@pytest.mark.parametrize("text", NEVER)
def test_metadata_link_local_and_special_addresses_never_are(text: str) -> None:
    assert not permitted(ip_address(text), allow_private=False)
    assert not permitted(ip_address(text), allow_private=True)


@pytest.mark.parametrize("text", SMUGGLERS)
def test_a_public_address_with_a_private_one_inside_is_private(text: str) -> None:
    assert not permitted(ip_address(text), allow_private=False)


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_changes_nothing(address: object) -> None:
    plain = ip_address(str(address))
    value = int(plain)
    for wrapped in (0xFFFF << 32 | value, 0x64FF9B << 96 | value):
        assert permitted(ip_address(wrapped.to_bytes(16, "big")), allow_private=False) == permitted(
            plain, allow_private=False
        )


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///etc/passwd",
            "gopher://h/",
            "ftp://h/",
            "data:text/plain,x",
            "//h/",
            "h/x",
            "",
            "http:",
            "javascript:1",
        ),
        *("http://", "http:///x", "https://:443/", "http://h:0/", "http://h:99999/", "http://h:x/"),
        *("http://127.0.0.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
        *(
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://0/",
        ),
        *("http://017700000001/", "http://0x7f.0x0.0x0.0x1/", "http://127.0.0.1./", "http://127.000.000.001/"),
        *("http://3232235777/", "http://134744072/", "http://0x08080808/", "http://8.8.8.8.", "http://1.2.3.4.5/"),
        *("http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://[fe80::1%25eth0]/"),
        *("http://localhost/", "http://LOCALHOST:80/", "http://a.localhost/", "http://localhost./"),
        *(
            "http://user@h.example/",
            "http://u:p@h.example/",
            "http://8.8.8.8@127.0.0.1/",
            "http://h.example\\@127.0.0.1/",
        ),
        *(
            "http://h.example /",
            " http://h.example",
            "http://h.example/\r\nX: y",
            "http://h.example\t/",
            "http://h\x00/",
        ),
        *("http://①②⑦.⓪.⓪.①/", "http://ⓛocalhost/", "http://h。example/", "http://münchen.example/"),
        *("http://[::1", "http://::1/", "http://[v1.x]/", "http://-h.example/", "http://h..example/", "http://%31/"),
        "http://h.example/" + "x" * 2048,
        "http://" + "a" * 64 + ".example/",
    ],
)
def test_urls_that_are_never_called(url: str) -> None:
    with pytest.raises(BlockedUrl):
        parse(url, allow_private=False)


@pytest.mark.parametrize(
    ("url", "authority", "origin", "path"),
    [
        ("https://Hooks.Example/x?y=1#z", "hooks.example", "https://hooks.example", "/x?y=1"),
        ("HTTP://h.example", "h.example", "http://h.example", "/"),
        ("http://h.example:80/", "h.example", "http://h.example", "/"),
        ("https://h.example:8443/a%20b", "h.example:8443", "https://h.example:8443", "/a%20b"),
        (
            "https://[2606:4700:4700::1111]:8443/",
            "[2606:4700:4700::1111]:8443",
            "https://[2606:4700:4700::1111]:8443",
            "/",
        ),
        ("http://8.8.8.8/", "8.8.8.8", "http://8.8.8.8", "/"),
        ("http://xn--mnchen-3ya.example/?q", "xn--mnchen-3ya.example", "http://xn--mnchen-3ya.example", "/?q"),
    ],
)
def test_ordinary_urls_are_taken_apart(url: str, authority: str, origin: str, path: str) -> None:
    target = parse(url, allow_private=False)
    assert (target.authority, target.origin, target.path) == (authority, origin, path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/x", "http://[::1]/", "http://localhost/", "http://10.1.2.3/"])
def test_closed_networks_may_call_themselves(url: str) -> None:
    parse(url, allow_private=True)


@pytest.mark.parametrize(
    "url", ["http://2130706433/", "http://127.1/", "http://169.254.169.254/", "http://[fe80::1%251]/"]
)
def test_closed_networks_have_no_use_for_disguises_and_metadata(url: str) -> None:
    with pytest.raises(BlockedUrl):
        parse(url, allow_private=True)
