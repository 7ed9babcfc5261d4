"""Notices that a machine will go: files, and answers of a real HTTP server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Handler, Server
from worker.health.preemption import Notices


class Cloud(Handler):
    """Answers what the test has put on the server; with a token only to those who fetched it first."""

    def do_GET(self) -> None:
        self.remember()
        if self.server.token and self.headers["X-aws-ec2-metadata-token"] != self.server.token:
            self.answer(401)
        else:
            self.answer(*self.server.says)

    def do_PUT(self) -> None:
        self.remember()
        self.answer(200, self.server.token.encode())


class Metadata(Server):
    token = ""
    says: tuple[int, bytes] = (404, b"")


@pytest.fixture
def cloud() -> Iterator[Metadata]:
    server = Metadata(Cloud)
    yield server
    server.stop()


def noticed(url: str | None = None, file: Path | None = None) -> int:
    """How often a worker is asked to leave when it looks three times."""
    left: list[bool] = []
    notices = Notices(lambda: left.append(True), file=file, url=url)
    for _ in range(3):
        notices.check()
    return len(left)


@pytest.mark.parametrize(
    ("says", "leaves"),
    [
        ((200, b'{"action": "terminate"}'), 1),
        ((200, b"TRUE"), 1),
        ((200, b"FALSE"), 0),
        ((200, b"NONE"), 0),
        ((200, b""), 0),
        ((404, b"not yet"), 0),
        ((500, b"broken"), 0),
        ((302, b"elsewhere"), 0),
    ],
)
def test_what_counts_as_a_notice(cloud: Metadata, says: tuple[int, bytes], leaves: int) -> None:
    cloud.says = says
    assert noticed(cloud.url + "/notice") == leaves


def test_a_cloud_that_wants_a_token_gets_one(cloud: Metadata) -> None:
    cloud.token, cloud.says = "abc", (200, b"terminate")
    assert noticed(cloud.url + "/latest/meta-data/spot/instance-action") == 1
    assert "PUT /latest/api/token" in [asked[0] for asked in cloud.asked]


def test_a_silent_cloud_is_no_notice() -> None:
    assert noticed("http://127.0.0.1:1/notice") == 0


def test_a_file_is_a_notice_once_it_is_there(tmp_path: Path) -> None:
    assert noticed(file=tmp_path / "notice") == 0
    (tmp_path / "notice").touch()
    assert noticed(file=tmp_path / "notice") == 1
