"""The URL of Redis, as the libraries are given it, and what is said of a wrong one."""

import ssl

import pytest
from kombu.utils.url import parse_url as as_kombu_reads
from redis.connection import parse_url as as_redis_py_reads

from shared.redis_address import RedisAddress


@pytest.mark.parametrize(
    ("url", "host", "port", "user", "password", "database"),
    [
        ("redis://", "127.0.0.1", 6379, None, None, 0),
        ("redis://redis.example", "redis.example", 6379, None, None, 0),
        ("rediss://:p%2Fw;x@redis.example:6380/2", "redis.example", 6380, None, "p/w;x", 2),
        ("rediss://farm:p%40w@[::1]:6380/", "::1", 6380, "farm", "p@w", 0),
    ],
)
def test_both_libraries_read_the_same(
    url: str, host: str, port: int, user: str | None, password: str | None, database: int
) -> None:
    address = RedisAddress.parse(url)
    assert bool(address.tls) is url.startswith("rediss")
    kombus, theirs = as_kombu_reads(address.url), as_redis_py_reads(address.url)
    assert (kombus["hostname"], kombus["port"], kombus["userid"], kombus["password"]) == (host, port, user, password)
    assert (theirs["host"], theirs["port"], theirs.get("username"), theirs.get("password")) == (
        host,
        port,
        user,
        password,
    )
    assert int(kombus["virtual_host"]) == theirs["db"] == database


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("", (ssl.CERT_REQUIRED, True)),
        ("?ssl_cert_reqs=required", (ssl.CERT_REQUIRED, True)),
        ("?ssl_cert_reqs=CERT_REQUIRED", (ssl.CERT_REQUIRED, True)),
        ("?ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=False", (ssl.CERT_REQUIRED, False)),
        ("?ssl_cert_reqs=optional", (ssl.CERT_OPTIONAL, True)),
        ("?ssl_cert_reqs=CERT_OPTIONAL", (ssl.CERT_OPTIONAL, True)),
        ("?ssl_cert_reqs=none", (ssl.CERT_NONE, False)),
        ("?ssl_cert_reqs=CERT_NONE", (ssl.CERT_NONE, False)),
    ],
)
def test_certificates_are_checked_unless_it_is_said(said: str, meant: tuple[ssl.VerifyMode, bool]) -> None:
    tls = RedisAddress.parse(f"rediss://h:1/0{said}").tls
    assert (tls["ssl_cert_reqs"], tls["ssl_check_hostname"]) == meant


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://h", "not a URL like redis://"),
        ("unix:///s3same.sock", "not a URL like redis://"),
        ("redis:h", "not a URL like redis://"),
        ("redis://:s3same/x@h:1/0", "write / ? # @ : as"),
        ("redis://a:1/0;redis://b:1/0", "the database, after the host and a slash, is no number"),
        ("redis://h/jobs", "the database, after the host and a slash, is no number"),
        ("redis://:s3same@h?socket_timeout=5", "unknown parameter 'socket_timeout'"),
        ("redis://:s3same@h?ssl_cert_reqs=none", "ssl_cert_reqs is for rediss://"),
        ("rediss://:s3same@h?ssl_cert_reqs=maybe", "ssl_cert_reqs is one of none, optional, required"),
        ("rediss://:s3same@h?ssl_check_hostname=2", "ssl_check_hostname is one of true, false"),
        ("rediss://:s3same@h?ssl_ca_certs=none.pem", "ssl_ca_certs=none.pem cannot be used: No such file"),
        ("rediss://:s3same@h?ssl_ca_certs=", "ssl_ca_certs= cannot be used: No such file"),
        (f"rediss://:s3same@h?ssl_ca_certs={__file__}", "cannot be used: "),
        ("rediss://:s3same@h?ssl_keyfile=k.pem", "ssl_keyfile is the key of an ssl_certfile"),
    ],
)
def test_a_wrong_url_is_told_without_repeating_it(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        RedisAddress.parse(url)
    assert says in str(refused.value)
    assert "s3same" not in str(refused.value)
