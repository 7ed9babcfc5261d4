"""The supervisor and its guard, on small real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.standalone import child, leftovers
from deploy.standalone.child import Restarts
from deploy.standalone.leftovers import FarmProcess
from deploy.standalone.program import Program, StartFailed
from deploy.standalone.supervisor import Supervisor
from tests.support.heard import Heard, family, python
from tests.support.waiting import LIMIT_S

EAGER = Restarts(pauses_s=(0.0, 0.0, 0.0), slow_s=0.0)


# Serves once; when it is started again it finds its marker and gives up.
PAINTER = """
import pathlib, signal, sys
marker = pathlib.Path(sys.argv[1])
if marker.exists(): sys.exit(print("no more paint") or 3)
marker.touch()
signal.pause()
"""


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def supervise(tmp_path: Path, heard: Heard) -> Iterator[Callable[[Restarts | None], Supervisor]]:
    opened: list[Supervisor] = []

    def open_(restarts: Restarts | None = None) -> Supervisor:
        opened.append(Supervisor(tmp_path, tmp_path / "run.json", heard, restarts).__enter__())
        return opened[-1]

    yield open_
    for supervisor in opened:
        supervisor.stop()


def members(folder: Path, name: str = "family") -> list[psutil.Process]:
    return [psutil.Process(int(pid)) for pid in (folder / f"{name}.pids").read_text().split()]


def all_gone(processes: list[psutil.Process]) -> bool:
    return leftovers.wait_gone(processes, LIMIT_S) == []


def test_a_killed_child_comes_back_and_its_grandchild_is_gone(
    tmp_path: Path, heard: Heard, supervise: Callable[..., Supervisor]
) -> None:
    supervise().start(family(tmp_path))
    first = members(tmp_path)
    first[0].kill()
    assert heard.next("died", "family").line == "family was killed by SIGKILL; starting it again"
    heard.next("ready", "family")
    assert all_gone(first)
    assert all(process.is_running() for process in members(tmp_path))


def test_children_lead_sessions_of_their_own(tmp_path: Path, supervise: Callable[..., Supervisor]) -> None:
    supervise().start(family(tmp_path))
    leader, grandchild = members(tmp_path)
    assert os.getsid(leader.pid) == leader.pid
    assert os.getpgid(grandchild.pid) == leader.pid


def test_a_child_that_keeps_dying_is_named_with_its_log(
    tmp_path: Path, heard: Heard, supervise: Callable[..., Supervisor]
) -> None:
    marker = tmp_path / "served"
    supervise(EAGER).start(python("painter", PAINTER, str(marker), ready=marker.exists))
    running = json.loads((tmp_path / "run.json").read_text())["running"]
    os.kill(running[0][1], signal.SIGKILL)
    failing = heard.next("failing", "painter")
    assert failing.line.startswith("painter keeps dying (exited with status 3); trying again every")
    assert str(tmp_path / "painter.log") in failing.line
    assert failing.tail[-1] == "no more paint"


@pytest.mark.parametrize("once", [False, True])
def test_a_failed_start_names_the_status_the_last_line_and_the_log(
    supervise: Callable[..., Supervisor], once: bool
) -> None:
    broken = python("broken", "print('cannot find my brush'); raise SystemExit(4)", ready=lambda: False, once=once)
    with pytest.raises(
        StartFailed, match=r"^broken exited with status 4\. Its last line: cannot find my brush Its log: .*broken\.log$"
    ):
        supervise().start(broken)


def test_a_program_that_does_not_exist_fails_to_start(supervise: Callable[..., Supervisor]) -> None:
    with pytest.raises(StartFailed, match=r"ghost could not be started: .*No such file"):
        supervise().start(Program(name="ghost", argv=("/nowhere/ghost",), env={}))


def test_a_program_that_is_never_ready_fails_to_start_and_is_stopped(
    tmp_path: Path, heard: Heard, supervise: Callable[..., Supervisor]
) -> None:
    supervisor = supervise()
    with pytest.raises(StartFailed, match="sleeper was not ready in time"):
        supervisor.start(python("sleeper", "import signal; signal.pause()", ready=lambda: False, ready_within_s=0.2))
    heard.next("started", "sleeper")
    (entry,) = json.loads((tmp_path / "run.json").read_text())["running"]
    process = psutil.Process(entry[1])
    supervisor.stop()
    assert all_gone([process])


def test_a_stage_starts_when_a_one_shot_has_succeeded(tmp_path: Path, supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise()
    supervisor.start(
        python("prepare", "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()", str(tmp_path / "done"), once=True)
    )
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("flags", [(), ("stubborn",), ("stubborn", "detached")])
def test_stopping_leaves_nothing_behind(
    tmp_path: Path, supervise: Callable[..., Supervisor], flags: tuple[str, ...]
) -> None:
    others = set(psutil.Process().children())  # the engines of the test run
    supervisor = supervise()
    supervisor.start(family(tmp_path, *flags, grace_s=0.2 if flags else 60.0))
    processes = [*members(tmp_path), *set(psutil.Process().children()) - others]
    supervisor.stop()
    assert all_gone(processes)
    assert not (tmp_path / "run.json").exists()


def test_in_a_hurry_a_stubborn_child_is_killed_without_its_grace(
    tmp_path: Path, supervise: Callable[..., Supervisor]
) -> None:
    supervisor = supervise()
    supervisor.start(family(tmp_path, "stubborn", grace_s=3600.0))
    processes = members(tmp_path)
    supervisor.hurry()
    supervisor.stop()
    assert all_gone(processes)


def test_stages_stop_in_reverse_order(tmp_path: Path, supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise()
    code = (
        "import pathlib, signal, sys\ndef leave(*_):\n    open(sys.argv[2], 'a').write(sys.argv[1] + ' ')\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave); pathlib.Path(sys.argv[3]).touch()\nwhile True: signal.pause()"
    )
    for name in ("engine", "desk"):
        marker = tmp_path / f"{name}.ready"
        supervisor.start(python(name, code, name, str(tmp_path / "left"), str(marker), ready=marker.exists))
    supervisor.stop()
    assert (tmp_path / "left").read_text().split() == ["desk", "engine"]


def test_a_long_log_is_put_aside_at_the_start(
    tmp_path: Path, supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "ROTATE_AT_BYTES", 100)
    (tmp_path / "talker.log").write_text("old " * 100)
    supervise().start(python("talker", "print('new')", once=True))
    assert (tmp_path / "talker.log").read_text() == "new\n"
    assert (tmp_path / "talker.log.1").read_text().startswith("old old")


SUPERVISOR = """
import pathlib, sys
from deploy.standalone.supervisor import Supervisor
from tests.support.heard import family
folder = pathlib.Path(sys.argv[1])
with Supervisor(folder, folder / "run.json") as supervisor:
    supervisor.start(family(folder))
    print("started", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A supervisor in a process of its own, with a family."""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
        process.kill()


def test_when_the_supervisor_is_killed_its_guard_stops_the_rest(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    processes = [*members(tmp_path), *psutil.Process(other.pid).children()]
    other.kill()
    assert all_gone(processes)


def test_when_the_guard_is_killed_too_the_next_supervisor_stops_the_rest(
    tmp_path: Path, other: "subprocess.Popen[str]", supervise: Callable[..., Supervisor]
) -> None:
    processes = members(tmp_path)
    (guard,) = [process for process in psutil.Process(other.pid).children() if process not in processes]
    guard.kill()
    other.kill()
    assert all_gone([guard])
    assert all(process.is_running() for process in processes)
    supervise()
    assert all_gone(processes)


def test_a_stranger_with_a_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        born = leftovers.born(stranger.pid)
        leftovers.record(tmp_path / "run.json", 1, [FarmProcess("api", stranger.pid, born + "0", signal.SIGKILL)])
        assert leftovers.stop(tmp_path / "run.json") == []
        assert stranger.poll() is None
        leftovers.record(tmp_path / "run.json", 1, [FarmProcess("api", stranger.pid, born, signal.SIGKILL)])
        assert leftovers.stop(tmp_path / "run.json", farm=2) == []
        assert leftovers.stop(tmp_path / "run.json", farm=1) == ["api"]


def test_a_damaged_run_file_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"farm": 1, "running": [["api"')
    assert leftovers.stop(tmp_path / "run.json") == []
