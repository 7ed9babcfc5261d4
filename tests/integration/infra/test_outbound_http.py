"""The door to the outside against real servers on loopback: what is dialled was judged, and every wait ends."""

import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BlockedUrl, UrlUnreachable
from shared.infra.deadline import within
from shared.infra.outbound_http import OutboundHttp
from tests.support.servers import LOOPBACK, Dialler, Handler, Server
from tests.support.waiting import LIMIT_S

PROMISE = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npicture"
# What is sent at once, and then again and again.
TRICKLES = {
    "/head": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
    "/body": (PROMISE, b"a"),
    "/chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "/promises": (PROMISE, b""),
}


class Site(Handler):
    def do_GET(self) -> None:
        self.remember()
        match self.path:
            case "/picture":
                self.answer(200, b"picture")
            case "/loop":
                self.answer(302, Location="/loop")
            case "/moved" | "/again":
                self.answer(301 if self.path == "/moved" else 302, Location="/picture")
            case "/inside":
                self.answer(302, Location="http://169.254.169.254/latest/meta-data/")
            case "/elsewhere":
                self.answer(302, Location="http://inside.example/picture")
            case "/scheme":
                self.answer(302, Location="file:///etc/passwd")
            case "/ends-early":
                self.wfile.write(PROMISE)
                self.close_connection = True
            case path if path in TRICKLES:
                self.trickle(*TRICKLES[path])
            case "/silent":
                self.server.released.wait(LIMIT_S)
            case _:
                self.answer(404)

    def do_POST(self) -> None:
        self.remember()
        self.answer(302, Location="/picture")

    def trickle(self, begin: bytes, bit: bytes) -> None:
        """Send bit by bit until the other side has had enough; each bit alone is well within any read timeout."""
        try:
            self.wfile.write(begin)
            while not self.server.released.wait(0.02):
                self.wfile.write(bit)
        except OSError:
            self.close_connection = True


@pytest.fixture
def site() -> Iterator[Any]:
    server: Any = Server(Site)
    server.released = threading.Event()
    yield server
    server.released.set()
    server.stop()


def open_door(**changes: Any) -> OutboundHttp:
    return OutboundHttp(**{"allow_private": True, **changes})


def test_a_file_is_fetched_and_redirects_are_followed(site: Server) -> None:
    assert open_door().fetch(site.url + "/moved", max_bytes=100, deadline_s=LIMIT_S) == b"picture"


@pytest.mark.parametrize("path", ["/inside", "/scheme"])
def test_a_redirect_is_judged_like_the_first_url(site: Server, path: str) -> None:
    with pytest.raises(BlockedUrl):
        open_door().fetch(site.url + path, max_bytes=100, deadline_s=LIMIT_S)


@pytest.mark.parametrize(
    ("path", "words"), [("/loop", "redirected"), ("/nothing", "404"), ("/picture", "larger than 6")]
)
def test_what_cannot_be_had_says_why(site: Server, path: str, words: str) -> None:
    with pytest.raises(UrlUnreachable, match=words):
        open_door().fetch(site.url + path, max_bytes=6, deadline_s=LIMIT_S)


@pytest.mark.parametrize("path", [*TRICKLES, "/silent"])
def test_the_deadline_is_for_the_whole(site: Server, path: str) -> None:
    with pytest.raises(UrlUnreachable, match="in time"):
        open_door().fetch(site.url + path, max_bytes=1000, deadline_s=0.3)
    with pytest.raises(UrlUnreachable, match="in time"), within(0.3):
        open_door().fetch(site.url + path, max_bytes=1000, deadline_s=LIMIT_S)


def test_less_than_was_announced_is_no_picture(site: Server) -> None:
    with pytest.raises(UrlUnreachable, match="could not be reached"):
        open_door().fetch(site.url + "/ends-early", max_bytes=1000, deadline_s=LIMIT_S)


def test_a_post_follows_no_redirect(site: Server) -> None:
    assert open_door().post(site.url + "/", b"x", headers={}, deadline_s=LIMIT_S).status == 302
    assert [asked for asked, *_ in site.asked] == ["POST /"]


def test_loopback_is_out_of_reach_unless_allowed(site: Server) -> None:
    for url in (site.url, f"http://localhost:{site.server_port}/", f"http://[::ffff:127.0.0.1]:{site.server_port}/"):
        with pytest.raises(BlockedUrl):
            OutboundHttp(allow_private=False).fetch(url, max_bytes=100, deadline_s=LIMIT_S)
    assert site.asked == []


def test_a_name_that_changes_its_address_between_judging_and_dialling_gains_nothing(site: Server) -> None:
    answers = [["93.184.216.34"], [LOOPBACK]]
    dialler = Dialler(site.server_port)
    outside = OutboundHttp(allow_private=False, resolve=lambda _host, _port: answers.pop(0), dial=dialler)
    assert outside.fetch("http://rebind.example/picture", max_bytes=100, deadline_s=LIMIT_S) == b"picture"
    assert dialler.dialled == ["93.184.216.34"]
    assert site.asked[0][1] == "rebind.example"
    with pytest.raises(BlockedUrl):
        outside.fetch("http://rebind.example/picture", max_bytes=100, deadline_s=LIMIT_S)
    assert dialler.dialled == ["93.184.216.34"]


@pytest.mark.parametrize("path", ["/again", "/elsewhere"])
def test_a_redirect_to_a_name_dials_what_was_judged_for_it(site: Server, path: str) -> None:
    """To the same name, whose address has changed since, or to another one: inside is out of reach."""
    answers = {"rebind.example": ["93.184.216.34", LOOPBACK], "inside.example": ["10.0.0.1"]}
    dialler = Dialler(site.server_port)
    outside = OutboundHttp(allow_private=False, resolve=lambda host, _port: [answers[host].pop(0)], dial=dialler)
    with pytest.raises(BlockedUrl):
        outside.fetch("http://rebind.example" + path, max_bytes=100, deadline_s=LIMIT_S)
    assert dialler.dialled == ["93.184.216.34"]


@pytest.mark.parametrize(
    "addresses", [["93.184.216.34", LOOPBACK], ["::1"], ["fe80::1%lo"], ["64:ff9b::7f00:1"], ["::ffff:169.254.169.254"]]
)
def test_one_bad_address_spoils_a_name(addresses: Sequence[str], site: Server) -> None:
    dialler = Dialler(site.server_port)
    outside = OutboundHttp(allow_private=False, resolve=lambda _host, _port: addresses, dial=dialler)
    with pytest.raises(BlockedUrl, match="not on the public internet"):
        outside.fetch("http://mixed.example/picture", max_bytes=100, deadline_s=LIMIT_S)
    assert dialler.dialled == []


def test_a_resolver_that_hangs_or_knows_nothing_is_not_waited_for(site: Any) -> None:
    def hang(_host: str, _port: int) -> Sequence[str]:
        site.released.wait(LIMIT_S)
        return []

    with pytest.raises(UrlUnreachable, match="in time"):
        open_door(resolve=hang).fetch("http://h.example/", max_bytes=100, deadline_s=0.1)
    with pytest.raises(UrlUnreachable, match="no address"):
        open_door(resolve=lambda _host, _port: []).fetch("http://h.example/", max_bytes=100, deadline_s=LIMIT_S)
    with pytest.raises(UrlUnreachable, match="could not be resolved"):
        open_door().fetch("http://no-such-name.invalid/", max_bytes=100, deadline_s=LIMIT_S)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for good.example, key and all."""
    made = tmp_path / "good.pem"
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=good.example -addext subjectAltName=DNS:good.example"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(["openssl", *request.split(), *files], check=True, capture_output=True, timeout=60)
    made.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "cert.pem").read_bytes())
    return made


def test_the_certificate_must_be_the_names_though_an_address_is_dialled(site: Server, certificate: Path) -> None:
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    site.socket = serving.wrap_socket(site.socket, server_side=True)
    names: list[str] = []
    serving.sni_callback = lambda _socket, name, _context: names.append(name)
    outside = OutboundHttp(
        allow_private=False,
        resolve=lambda _host, _port: ["93.184.216.34"],
        dial=Dialler(site.server_port),
        ssl_context=ssl.create_default_context(cafile=certificate),
    )
    assert outside.fetch("https://good.example/picture", max_bytes=100, deadline_s=LIMIT_S) == b"picture"
    with pytest.raises(UrlUnreachable, match="certificate"):
        outside.fetch("https://evil.example/picture", max_bytes=100, deadline_s=LIMIT_S)
    assert names == ["good.example", "evil.example"]
