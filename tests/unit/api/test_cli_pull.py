"""`farm checkpoints pull` against a server that answers as the hub does."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cli import hub_download
from api.cli.output import Failure
from tests.support.servers import Handler, Server
from tests.support.waiting import LIMIT_S

WEIGHTS = bytes(range(256)) * 4096
FARM = [sys.executable, "-c", "import sys; from api.cli import main; sys.exit(main())"]


class HubHandler(Handler):
    """The hub's file endpoint: metadata on a redirect, the bytes from another host that does not get the token."""

    def do_HEAD(self) -> None:
        self.remember()
        if "nowhere" in self.path:
            self.answer(404, X_Error_Code="RepoNotFound")
            return
        announced = self.server.announced or hashlib.sha256(WEIGHTS).hexdigest()
        self.answer(
            302,
            Location=f"http://localhost:{self.server.server_port}/cdn",
            ETag='"of-the-redirect"',
            X_Linked_Etag=f'"{announced}"',
            X_Linked_Size=str(len(WEIGHTS)),
            X_Repo_Commit="c" * 40,
        )

    def do_GET(self) -> None:
        self.remember()
        if self.path != "/cdn":
            self.answer(302, Location=f"http://localhost:{self.server.server_port}/cdn")
            return
        wanted = re.match(r"bytes=(\d+)-", self.headers["Range"] or "")
        begin = int(wanted[1]) if wanted and self.server.ranges else 0
        self.server.begins.append(begin)
        rest = WEIGHTS[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(rest)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}")
        self.end_headers()
        self.wfile.write(rest[: self.server.breaks_after])
        self.close_connection = True


class Hub(Server):
    def __init__(self) -> None:
        self.announced: str | None = None
        self.ranges = True
        self.breaks_after = len(WEIGHTS)
        self.begins: list[int] = []
        super().__init__(HubHandler)

    def pull(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        env = os.environ | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_secret",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        command = [*FARM, "checkpoints", "pull", "--to", "weights", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    served = Hub()
    yield served
    served.stop()


def test_pull_resumes_through_a_breaking_connection_and_checks_the_sum(the_hub: Hub) -> None:
    the_hub.breaks_after = 400_000
    done = the_hub.pull()
    path = Path("weights/v1-5-pruned-emaonly.safetensors")
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    assert path.read_bytes() == WEIGHTS
    assert the_hub.begins == [0, 400_000, 800_000]
    assert [entry.name for entry in Path("weights").iterdir()] == [path.name]
    assert {key for what, _, key in the_hub.asked if what == "GET /cdn"} == {None}
    assert {key for what, _, key in the_hub.asked if what != "GET /cdn"} == {"Bearer hf_secret"}
    assert all(f"/resolve/{'c' * 40}/" in what for what, *_ in the_hub.asked if what.startswith("GET /stable"))
    assert the_hub.pull().returncode == 0
    assert len(the_hub.begins) == 3


@pytest.mark.parametrize(("ranges", "begins"), [(True, [700_000]), (False, [0])])
def test_pull_goes_on_where_an_earlier_run_stopped(the_hub: Hub, ranges: bool, begins: list[int]) -> None:
    the_hub.ranges = ranges
    folder = Path("weights/vae")
    folder.mkdir(parents=True)
    name = "vae-ft-mse-840000-ema-pruned.safetensors"
    (folder / f".{name}.{hashlib.sha256(WEIGHTS).hexdigest()[:16]}.partial").write_bytes(WEIGHTS[:700_000])
    assert the_hub.pull("--vae").returncode == 0
    assert the_hub.begins == begins
    assert (folder / name).read_bytes() == WEIGHTS


def test_pull_drops_bytes_whose_sum_is_wrong(the_hub: Hub) -> None:
    the_hub.announced = "0" * 64
    done = the_hub.pull()
    assert done.returncode == 1
    assert "SHA-256" in done.stderr.splitlines()[-1]
    assert list(Path("weights").iterdir()) == []


def test_pull_never_replaces_a_file_that_is_not_the_hubs(the_hub: Hub) -> None:
    Path("weights").mkdir()
    mine = Path("weights/v1-5-pruned-emaonly.safetensors")
    mine.write_bytes(b"mine")
    assert the_hub.pull().returncode == 1
    assert mine.read_bytes() == b"mine"


def test_pull_says_what_the_hub_does_not_have_and_when_there_is_no_hub(the_hub: Hub) -> None:
    absent = the_hub.pull("--repo", "nowhere/nothing")
    assert absent.stderr.count("\n") == 1
    assert "[http_404]" in absent.stderr
    the_hub.stop()
    offline = the_hub.pull()
    assert (offline.returncode, offline.stderr.count("\n")) == (1, 1)
    assert "offline" in offline.stderr
    assert "FARM_CHECKPOINT_DIR" in offline.stderr


@pytest.mark.parametrize(
    "file", ["m.ckpt", "m.safetensors.bin", "../m.safetensors", "/m.safetensors", "a/../m.safetensors", ""]
)
def test_only_plain_safetensors_names_are_fetched(file: str) -> None:
    with pytest.raises(Failure):
        hub_download.Source("owner/name", file)
