"""The `farm` command against the real farm: the demo, its interruption, and a farm that stays up."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
FARM = [sys.executable, "-c", "import sys; from api.cli import main; sys.exit(main())"]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# A demo that takes a minute, so that it is not done when it is interrupted, and leaves its usual port to another test's.
SLOW = "from api.cli.up import DEMO_PARAMS; DEMO_PARAMS.update(width=512, height=512, steps=150); "
ELSEWHERE = "import sys, api.cli.demo; sys.modules['api.cli.demo']._PORT = 0; "


@contextmanager
def farm(*arguments: str, profile_s: float = 0, before: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Run a command whose farm is embedded, whatever the engines of other tests put into the environment.

    `before` is run by its Python first.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    env |= {"PYTHONPATH": str(ROOT), "FARM_PROFILE_SECONDS": str(profile_s)}
    process = subprocess.Popen(
        [*FARM[:2], before + FARM[2], *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with process:
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
    finally:
        process.kill()


def wait_for(stream: Iterator[str], text: str) -> str:
    seen = []
    for line in stream:
        seen.append(line)
        if text in line:
            return line
    pytest.fail(f"{text!r} never came: {seen}")


def processes_of(folder: Path) -> list[list[str]]:
    return [process.info["cmdline"] for process in psutil.process_iter(["cmdline"]) if str(folder) in str(process.info)]


def test_the_demo_ends_with_its_picture_and_leaves_no_process(tmp_path: Path) -> None:
    with farm("demo", "--data-dir", str(tmp_path), profile_s=20) as process:  # as a newcomer's is
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    found = re.fullmatch(r"(\S+\.png) seed=\d+ took=[\d.]+s\n", out)
    assert found
    assert Path(found[1]).read_bytes().startswith(PNG_MAGIC)
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("line", ["postgres ready", "queued"])
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, line: str) -> None:
    with farm("demo", "--data-dir", str(tmp_path), before=SLOW + ELSEWHERE) as process:
        assert process.stderr
        wait_for(process.stderr, line)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=LIMIT_S)[1]
    assert process.returncode == 130, err
    assert processes_of(tmp_path) == []


def test_up_prints_lines_that_work_and_every_command_speaks_to_it(tmp_path: Path) -> None:
    with farm("up", "--port", "0", "--data-dir", str(tmp_path / "data")) as up:
        assert up.stdout
        url = wait_for(up.stdout, "The farm is ready")[len("The farm is ready: ") :].split()[0]
        submitted = subprocess.run(shlex.split(up.stdout.readline()), capture_output=True, text=True, check=True)
        job_id = json.loads(submitted.stdout)["id"]
        with farm("--url", url, "render", "a red circle on a blue background", "--size", "256", "--steps", "4", "-n", "2",
                  "-o", str(tmp_path / "pictures")) as rendering:  # fmt: skip
            out, err = rendering.communicate(timeout=LIMIT_S)
        assert rendering.returncode == 0, err
        assert [Path(line.split()[0]).read_bytes()[:8] for line in out.splitlines()] == [PNG_MAGIC, PNG_MAGIC]
        with farm("--url", url, "jobs") as jobs:
            assert job_id in jobs.communicate(timeout=LIMIT_S)[0]
        with farm("--url", url, "doctor") as doctor:
            assert "fail" not in doctor.communicate(timeout=LIMIT_S)[0]
        with farm("up", "--port", "0", "--data-dir", str(tmp_path / "data")) as second:
            refusal = second.communicate(timeout=LIMIT_S)[1]
        assert (second.returncode, refusal.count("\n")) == (1, 1)
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=LIMIT_S)
    assert up.returncode == 0
    assert processes_of(tmp_path) == []
