"""`farm top` on a real api: what it shows in a script, and live in a terminal."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from api.cli import main
from shared.fleet import holdings, registry
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from shared.jobs import lifecycle
from shared.settings import Settings
from tests.support.factories import DEMO, params
from tests.support.waiting import LIMIT_S
from tests.support.workshop import serving

FARM = [sys.executable, "-c", "import sys; from api.cli import main; sys.exit(main())"]


@pytest.fixture
def url(settings: Settings, db: Database, announced: str) -> Iterator[str]:
    with db.transaction() as session:
        lifecycle.submit(session, params(checkpoint=announced, prompt="a \x1b[2J star"), max_attempts=1)
        registry.announce(
            session, worker_id="gpu1@b", checkpoint=DEMO, size_bytes=1, hostname="b", device="H100", slots=4
        )
        holdings.hold(session, "gpu0@test", [Holding("warm", 1, Tier.RAM, 0.1), Holding("cold", 1, Tier.DISK, 5.0)])
        assert holdings.intend(session, "gpu0@test", "warm", silent_after_s=60)
        registry.mark_unfit(session, "gpu1@b", "The canary is 61.0 levels off.")
    with serving(settings) as address:
        yield address


def test_once_prints_queue_workers_and_jobs(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", url, "top", "--once"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    # The unfit worker counts for nothing.
    assert [DEMO, "1", "0", "0 s", "1", "1×4", "?"] in [
        [*line[:3], "0 s", *line[4:]] for line in lines if line[0] == DEMO
    ]
    assert not [line for line in lines if line[0] == "cold"]  # in folders only
    assert ["gpu0@test", "idle", f"{DEMO} > warm", "1/3", "0", "0/4", "-", "-", "-", "test"] in lines
    unfit = "unfit: The canary is 61.0 levels off."
    assert ["gpu1@b", unfit, DEMO, "0/1", "0", "0/4", "-", "-", "-", "H100"] in lines
    assert [line[1:3] + line[4:] for line in lines if len(line) == 6 and line[1] == "queued"] == [
        ["queued", "0/4", "-", "a [2J star"]
    ]


def test_live_it_fills_the_terminal_until_it_is_stopped(url: str) -> None:
    screen, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    farm = subprocess.Popen(
        [*FARM, "--url", url, "top", "--every", "0.2"], stdin=terminal, stdout=terminal, stderr=terminal, env=env
    )
    os.close(terminal)
    try:
        shown = b""
        while b"unfit" not in shown:
            shown += os.read(screen, 4096)
        farm.send_signal(signal.SIGINT)
        with suppress(OSError):  # the terminal's other end is closed
            while os.read(screen, 4096):
                pass
        assert farm.wait(LIMIT_S) == 0
    finally:
        farm.kill()
        farm.wait()
        os.close(screen)


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9", "top", "--once"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_worker_is_drained_and_taken_back(url: str, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, is_draining in (([], True), (["--resume"], False)):
        assert main(["--url", url, "drain", *arguments, "gpu0@test"]) == 0
        with db.transaction() as session:
            assert registry.beat(session, "gpu0@test") is is_draining
    assert main(["--url", url, "drain", "nobody@nowhere"]) == 1
    assert "worker_not_found" in capsys.readouterr().err
