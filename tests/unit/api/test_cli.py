"""The `farm` command against real HTTP on loopback: a desk that speaks the /v1 contract, and a hub that serves a file."""

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest

from api.cli import checks, main, up
from api.cli.client import ClientError, FarmClient
from api.cli.polling import Interrupted, pause_s, watch
from api.client import problems
from tests.support.servers import Handler, Server
from tests.support.waiting import LIMIT_S

PNG = b"\x89PNG not really, but nobody here decodes it"
FARM = [sys.executable, "-c", "import sys; from api.cli import main; sys.exit(main())"]


class DeskHandler(Handler):
    """Jobs advance a quarter of their steps each time they are looked at."""

    def do_POST(self) -> None:
        self.remember()
        self.server.keys.append(self.headers["Idempotency-Key"])
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        if self.server.down:
            self.server.down -= 1
            self.outage()
        elif self.path.endswith("/cancel"):
            self.cancel(self.path.split("/")[3])
        elif "bad" in body["prompt"]:
            self.problem(422, "invalid_request", "width: must be a multiple of 8")
        else:
            self.reply(self.server.add(body), 202)

    def do_GET(self) -> None:
        self.remember()
        self.server.looked.set()
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if self.server.blinks:
            self.server.blinks -= 1
            self.close_connection = True
        elif self.server.down:
            self.server.down -= 1
            self.outage()
        elif path == "/storage":
            self.answer(200, PNG)
        elif "/images/" in path:
            self.answer(307, Location=f"http://localhost:{self.server.server_port}/storage")
        elif path == "/v1/jobs":
            begin = int(query.get("cursor", ["0"])[0])
            page = list(self.server.jobs.values())[begin : begin + 2]
            more = str(begin + 2) if begin + 2 < len(self.server.jobs) else None
            self.answer(200, json.dumps({"jobs": page, "next_cursor": more}).encode())
        elif path == "/v1/checkpoints":
            served = [{"name": "shapes", "ready_workers": 1, "size_bytes": 5_000_000, "price_s": 0.5, "queued": 3}]
            self.answer(200, json.dumps({"checkpoints": served}).encode())
        elif path in {"/v1/loras", "/v1/embeddings", "/v1/vaes"}:
            served = [{"name": path[4:], "alias": "Inky", "size_bytes": 5_000_000}]
            self.answer(200, json.dumps({"weights": served}).encode())
        elif (job_id := path.split("/")[-1]) in self.server.jobs:
            self.reply(self.server.advance(job_id))
        elif path.startswith("/v1"):
            self.problem(404, "job_not_found", "No job has ever had this id.")
        else:
            self.answer(200, b"<html>something else</html>")

    def cancel(self, job_id: str) -> None:
        job = self.server.jobs[job_id]
        if job["state"] == "succeeded":
            self.problem(409, "job_already_final", "The job has already reached a final state.")
        else:
            job["state"] = "canceled"
            self.reply(job)

    def reply(self, job: dict[str, Any], status: int = 200) -> None:
        self.answer(status, json.dumps(job).encode())

    def outage(self) -> None:
        self.problem(503, "database_unavailable", "The database does not answer.", Retry_After="0")

    def problem(self, status: int, code: str, detail: str, **headers: str) -> None:
        self.answer(status, json.dumps({"status": status, "code": code, "detail": detail}).encode(), **headers)


class Desk(Server):
    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.keys: list[str] = []
        self.looked = Event()
        self.blinks = self.down = 0
        self.ends = "succeeded"
        self.sha256 = hashlib.sha256(PNG).hexdigest()
        super().__init__(DeskHandler)

    def add(self, params: dict[str, Any]) -> dict[str, Any]:
        job_id = str(uuid4())
        self.jobs[job_id] = {
            "id": job_id,
            "state": "queued",
            "progress": {"steps_done": 0, "steps_total": 20},
            "params": params,
            "images": [],
            "timings": {"created_at": "2026-01-01T00:00:00Z"},
            "error": None,
        }
        return self.jobs[job_id]

    def advance(self, job_id: str) -> dict[str, Any]:
        job = self.jobs[job_id]
        if job["state"] in {"queued", "running"} and self.ends != "never":
            job["progress"]["steps_done"] += 5
            job["state"] = self.ends if job["progress"]["steps_done"] == 20 else "running"
        if job["state"] == "failed":
            job["error"] = {"code": "out_of_memory", "message": "too large", "retryable": True}
        if job["state"] == "succeeded":
            url = f"/v1/jobs/{job_id}/images/0"
            job["images"] = [{"index": 0, "seed": job["params"].get("seed", 7), "url": url, "sha256": self.sha256}]
        return job


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk()
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FARM_URL", desk.url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    yield desk
    desk.stop()


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("farm: ")
    return captured.err


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from api.cli import main; assert main(['--help']) == 0;"
        "sys.exit(str({'torch', 'sqlalchemy', 'deploy', 'huggingface_hub', 'celery', 'boto3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.stderr == "set()\n"
    assert "render" in done.stdout


def test_render_saves_each_image_under_its_job_and_keeps_the_key_from_the_storage(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARM_API_KEY", "secret")
    assert main(["render", "../a", "b", "--seed", "5", "--jobs", "2", "--size", "256x128", "-o", "pictures"]) == 0
    out = capsys.readouterr().out
    assert sorted(re.findall(r"seed=(\d+)", out)) == ["5", "5", "6", "6"]
    assert {path.name for path in Path("pictures").iterdir()} == {f"{job_id}-0.png" for job_id in desk.jobs}
    assert all(path.read_bytes() == PNG for path in Path("pictures").iterdir())
    params = [job["params"] for job in desk.jobs.values()]
    assert [(one["prompt"], one["width"], one["height"]) for one in params] == [
        (p, 256, 128) for p in ("../a", "../a", "b", "b")
    ]
    assert {key for what, _, key in desk.asked if "/v1/" in what} == {"Bearer secret"}
    assert {key for what, _, key in desk.asked if "/storage" in what} == {None}
    assert list(tmp_path.iterdir()) == [tmp_path / "pictures"]


def test_a_single_image_goes_to_the_file_that_is_named(desk: Desk) -> None:
    assert main(["render", "a", "-o", "here/it.png"]) == 0
    assert Path("here/it.png").read_bytes() == PNG
    assert main(["render", "a", "b", "-o", "two.png"]) == 1
    assert len(desk.jobs) == 1


def test_a_refusal_is_one_line_and_withdraws_what_was_submitted(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "bad"]) == 1
    assert only_line(capsys) == "farm: width: must be a multiple of 8 [invalid_request]\n"
    desk.ends = "never"
    assert main(["render", "good", "bad"]) == 1
    assert [job["state"] for job in desk.jobs.values()] == ["canceled"]


def test_a_failed_job_and_a_damaged_image_fail_the_command(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.ends = "failed"
    assert main(["render", "a"]) == 1
    assert "failed: too large [out_of_memory]" in capsys.readouterr().err
    desk.ends, desk.sha256 = "succeeded", "0" * 64
    assert main(["render", "a"]) == 1
    assert "bad_image" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_network_that_blinks_is_borne_and_told_about(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.blinks = 2
    assert main(["render", "a"]) == 0
    err = capsys.readouterr().err
    assert err.count("still trying") == 1
    assert "answers again" in err


def test_a_farm_that_dies_for_good_ends_the_wait(desk: Desk) -> None:
    desk.ends = "never"
    job_id = desk.add({"prompt": "a"})["id"]

    def die(_job: object) -> None:
        desk.blinks = 1000

    with FarmClient(desk.url) as client, pytest.raises(ClientError) as caught:
        watch(client, [job_id], seen=die, interrupted=Interrupted(), patience_s=0)
    assert caught.value.transient


def test_only_what_is_safe_to_repeat_is_repeated(desk: Desk) -> None:
    job_id = desk.add({"prompt": "a"})["id"]
    desk.down = 2
    assert main(["job", job_id]) == 0
    desk.down = 1
    assert main(["render", "a"]) == 0
    first, second = desk.keys
    assert first == second


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels_what_was_submitted(desk: Desk, stop: signal.Signals) -> None:
    desk.ends = "never"
    with subprocess.Popen([*FARM, "render", "a", "b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert desk.looked.wait(LIMIT_S)
        process.send_signal(stop)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    assert out == b""
    assert [job["state"] for job in desk.jobs.values()] == ["canceled", "canceled"]


@pytest.mark.usefixtures("desk")
def test_bars_are_drawn_on_the_terminal_and_results_go_to_the_pipe() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([*FARM, "render", "ä\x1b[2J"], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        out = process.communicate(timeout=LIMIT_S)[0].decode()
    drawn = os.read(ours, 100_000).decode(errors="replace")
    os.close(ours)
    assert re.fullmatch(r"[0-9a-f-]{36}-0\.png seed=7\n", out)
    assert "/20" in drawn
    assert "\x1b[2J" not in drawn


def test_any_terminal_and_any_bytes_end_without_a_traceback(desk: Desk) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    desk.add({"prompt": "grün", "width": 8, "height": 8})
    for arguments, code in ((["jobs"], 0), (["render", b"\xff\xfe"], 1)):
        done = subprocess.run([*FARM, *arguments], env=env, capture_output=True, timeout=LIMIT_S, check=False)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_jobs_walks_the_pages_and_cleans_what_it_shows(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        desk.add({"prompt": f"{number}\x1b]0;title\x07\nsecond line"})
    assert main(["jobs", "--state", "queued", "--checkpoint", "shapes", "--limit", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["JOB", *list(desk.jobs)[:3]]
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", "".join(lines))
    assert {"state=queued", "checkpoint=shapes"} <= set(re.split(r"[?&]", desk.asked[0][0]))


def test_job_shows_every_fact_or_the_raw_answer_and_weights_are_listed(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = desk.add({"prompt": "a"})["id"]
    assert main(["job", job_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == desk.jobs[job_id]
    assert main(["job", job_id]) == 0
    assert f"id               {job_id}\n" in capsys.readouterr().out
    assert main(["checkpoints"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "shapes\tloads in 0.5 s\t1\t3\t5 MB"
    for kind in ("loras", "embeddings", "vaes"):
        assert main([kind]) == 0
        assert capsys.readouterr().out.splitlines()[1] == f"{kind}\tInky\t5.0 MB"


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("job_id", ["0198c0de-0000-7000-8000-000000000001", "no-such-job", "../../readyz", "\x1b[31m"])
def test_an_unknown_job_is_one_line(job_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", job_id]) == 1
    assert "[job_not_found]" in only_line(capsys)


def test_cancel_goes_on_past_a_job_that_is_final(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    done, waiting = desk.add({"prompt": "a"}), desk.add({"prompt": "b"})
    done["state"] = "succeeded"
    assert main(["cancel", done["id"], waiting["id"]]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{waiting['id']} canceled\n"
    assert "[job_already_final]" in captured.err


def test_nobody_there_is_one_line(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.stop()
    assert main(["jobs"]) == 1
    assert "farm up" in only_line(capsys)


@pytest.mark.parametrize("url", ["", "farm", "ftp://farm", "http://", "http://[", "http://farm:70000", "http://a\nb"])
def test_a_bad_url_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", url, "jobs"]) == 1
    assert "[bad_url]" in only_line(capsys)


def test_another_server_is_told_from_a_farm(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", f"{desk.url}/elsewhere", "jobs"]) == 1
    assert "[bad_response]" in only_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [["render"], ["render", "a", "--size", "big"], ["render", "a", "--guidance", "nan"], ["jobs", "--no"], ["paint"]],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    only_line(capsys)


def test_a_refusal_with_any_number_of_faults_can_be_read() -> None:
    faults = [{"field": "x" * 1000, "message": "no"}] * 1000
    body = {"detail": "y" * 100_000, "errors": faults, "code": "invalid_request"}
    assert len(str(problems.of_response(httpx.Response(422, json=body)))) < 16_000


def test_an_unforeseen_error_is_one_line_unless_debugged(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.add({"prompt": "a"})["params"] = "not an object"
    assert main(["jobs"]) == 1
    assert "--debug" in only_line(capsys)
    assert main(["--debug", "jobs"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_polling_is_quick_at_first_and_calm_later() -> None:
    assert [pause_s(waited) for waited in (0, 5, 25, 50, 5000)] == [0.1, 0.1, 0.5, 1.0, 1.0]


def test_migrate_and_doctor_say_what_to_do(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate"]) == 1
    assert "FARM_DATABASE_URL" in only_line(capsys)
    for probe in (checks.embedded_postgres, checks.embedded_redis, checks.embedded_storage):
        assert probe().level is checks.Level.OK
    nowhere = f"127.0.0.1:{desk.server_port}"
    desk.stop()
    monkeypatch.setenv("FARM_DATABASE_URL", f"postgresql://farm:secret@{nowhere}/farm")
    monkeypatch.setenv("FARM_REDIS_URL", f"redis://{nowhere}/0")
    for finding in (checks.postgres(), checks.redis()):
        assert finding.level is checks.Level.FAIL
        assert finding.fix
        assert "secret" not in finding.detail
    assert main(["migrate"]) == 1
    assert "secret" not in only_line(capsys)


def test_a_farm_for_other_machines_tells_their_address() -> None:
    here, there = "http://127.0.0.1:8000", "http://192.0.2.7:8000"
    assert not any("Other machines" in line for line in up._welcome(here, here))
    assert f"Other machines reach it at {there}" in up._welcome(here, there)
