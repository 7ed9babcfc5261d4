"""What runs on GPU machines: the units, the install script and the scripts beside them, run here as far as one machine allows."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hcl2
import pytest

from shared.settings import Settings
from tests.compose import ROOT
from tests.servers import Handler, Server

FOLDER = ROOT / "deploy/gpu-vm"
TERRAFORM = FOLDER / "terraform"
PLUGINS = Path("/opt/tf-plugins")
SCRIPTS = ("install.sh", "farm-notice", "farm-publish")


def bash(script: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", str(FOLDER / script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **env})


def tree(root: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): (path.stat().st_mode, path.read_text()) for path in files}


def test_the_scripts_are_clean() -> None:
    linter = Path(sys.executable).parent / "shellcheck"
    words = [str(linter), "--norc", *(str(FOLDER / script) for script in SCRIPTS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_installing_twice_changes_nothing_and_keeps_what_was_set(tmp_path: Path) -> None:
    first = bash("install.sh", "--root", tmp_path, "--gpus", 2)
    assert first.returncode == 0, first.stderr
    settings = tmp_path / "etc/farm/worker.env"
    settings.write_text("FARM_CHECKPOINT=mine\n")
    before = tree(tmp_path)
    assert bash("install.sh", "--root", tmp_path, "--gpus", 2).returncode == 0
    assert tree(tmp_path) == before
    assert settings.read_text() == "FARM_CHECKPOINT=mine\n"
    assert settings.stat().st_mode & 0o777 == 0o640
    wanted = tmp_path / "etc/systemd/system/multi-user.target.wants"
    assert {link.name for link in wanted.iterdir()} == {
        "farm-worker@0.service",
        "farm-worker@1.service",
        "farm-notice.service",
    }
    assert all(link.resolve().is_file() for link in wanted.iterdir())


def test_a_machine_without_a_gpu_is_told_what_to_do(tmp_path: Path) -> None:
    done = bash("install.sh", "--root", tmp_path, PATH=_tools(tmp_path / "bin", "bash", "dirname", "wc"))
    assert done.returncode == 1
    assert "--gpus" in done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    assert bash("install.sh", "--root", tmp_path, "--gpus", 1).returncode == 0
    celery = tmp_path / "opt/farm/venv/bin/celery"
    celery.parent.mkdir(parents=True)
    celery.touch(mode=0o755)
    units = [path.name for path in FOLDER.iterdir() if path.suffix in {".service", ".timer"}]
    # Only ours are laid there; what they order themselves after is systemd's own.
    for target in ("network-online.target", "sysinit.target", "basic.target", "shutdown.target", "timers.target"):
        (tmp_path / "etc/systemd/system" / target).write_text("[Unit]\nDefaultDependencies=no\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", *units],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if "farm-" in line and "is not executable" not in line]
    assert not complaints


def test_a_stop_lasts_longer_than_a_drain_and_shorter_than_a_spot_notice() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FOLDER / "farm-worker@.service")
    service = unit["Service"]
    drain_s = Settings.model_fields["drain_seconds"].default
    assert drain_s + 10 < int(service["TimeoutStopSec"]) < 120
    assert (service["KillSignal"], service["Restart"]) == ("SIGTERM", "always")
    text = (FOLDER / "farm-worker@.service").read_text()
    assert "CUDA_VISIBLE_DEVICES=%i" in text
    assert "-A worker.gpu worker --pool threads" in text


def test_the_settings_are_settings() -> None:
    known = {f"FARM_{name.upper()}" for name in Settings.model_fields}
    for file in ("worker.env.example", "farm-worker@.service"):
        named = set(re.findall(r"(?:^|[ =])(FARM_\w+)=", (FOLDER / file).read_text(), re.MULTILINE))
        assert named
        assert named <= known


class Metadata(Handler):
    """A cloud's metadata and an api's metrics, as much of them as the scripts read."""

    def do_PUT(self) -> None:
        self.answer(200, b"a-token")

    def do_GET(self) -> None:
        self.remember()
        body = self.server.pages.get(self.path)
        self.answer(404 if body is None else 200, (body or "").encode())


@pytest.fixture
def cloud() -> Iterator[Server]:
    server = Server(Metadata)
    server.pages = {}  # type: ignore[attr-defined]
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ({"spot/instance-action": '{"action": "terminate"}'}, "spot interruption"),
        ({"autoscaling/target-lifecycle-state": "Terminated"}, "scale-in"),
    ],
)
def test_a_notice_drains_the_workers_and_lets_the_group_go_on(
    tmp_path: Path, cloud: Server, pages: dict[str, str], reason: str
) -> None:
    pages = {**pages, "instance-id": "i-1"}
    cloud.pages = {f"/latest/meta-data/{path}": text for path, text in pages.items()}  # type: ignore[attr-defined]
    done, said = _noticed(tmp_path, FARM_METADATA_URL=cloud.url, FARM_GROUP="farm-workers", FARM_HOOK="drain")
    assert f"draining the workers: {reason}" in said
    assert done[0] == "systemctl stop farm-worker@*.service"
    assert done[1].startswith("aws autoscaling complete-lifecycle-action --auto-scaling-group-name farm-workers")
    assert "--instance-id i-1 --lifecycle-action-result CONTINUE" in done[1]


def test_other_clouds_leave_a_file(tmp_path: Path) -> None:
    (tmp_path / "going").touch()
    done, said = _noticed(tmp_path, FARM_NOTICE_FILE=str(tmp_path / "going"))
    assert "going is there" in said
    assert done == ["systemctl stop farm-worker@*.service"]


def test_the_wanted_number_of_workers_is_published(tmp_path: Path, cloud: Server) -> None:
    wanted = 'farm_desired_workers{checkpoint="a.b-1"} 3.0\nfarm_desired_workers{checkpoint="other"} 0.0\n'
    shown = f'# HELP\n{wanted}farm_workers{{checkpoint="a"}} 9.0\n'
    cloud.pages = {"/metrics": shown}  # type: ignore[attr-defined]
    path = _recorders(tmp_path, "aws")
    done = bash("farm-publish", FARM_API_URL=cloud.url, PATH=path)
    assert done.returncode == 0, done.stderr
    put = "aws cloudwatch put-metric-data --namespace RenderFarm --metric-name DesiredWorkers"
    assert (tmp_path / "done").read_text().splitlines() == [
        f"{put} --dimensions Checkpoint=a.b-1 --value 3.0 --unit Count",
        f"{put} --dimensions Checkpoint=other --value 0.0 --unit Count",
    ]


def test_a_farm_that_shows_nothing_is_an_error_that_says_so(tmp_path: Path, cloud: Server) -> None:
    cloud.pages = {"/metrics": "farm_database_up 0.0\n"}  # type: ignore[attr-defined]
    done = bash("farm-publish", FARM_API_URL=cloud.url, PATH=_recorders(tmp_path, "aws"))
    assert done.returncode == 1
    assert "farm_desired_workers" in done.stderr


def test_terraform_reads_as_it_should() -> None:
    """What holds without the tool: every file parses, every variable is declared and used, the drain is waited for."""
    parsed = {file.name: hcl2.loads(file.read_text()) for file in TERRAFORM.glob("*.tf")}
    declared = {name.strip('"') for block in parsed["variables.tf"]["variable"] for name in block}
    used = set(re.findall(r"\bvar\.(\w+)", "".join(file.read_text() for file in TERRAFORM.glob("*.tf"))))
    assert used == declared
    kinds = {kind.strip('"') for block in parsed["main.tf"]["resource"] for kind in block}
    assert {"aws_autoscaling_group", "aws_autoscaling_lifecycle_hook", "aws_autoscaling_policy"} <= kinds


@pytest.mark.skipif(
    shutil.which("terraform") is None or not PLUGINS.exists(),
    reason="terraform and a local mirror of its AWS provider are not here",
)
def test_terraform_plans_the_group(tmp_path: Path) -> None:
    """`terraform test` against a mocked provider. A copy is used: init writes beside the files."""
    shutil.copytree(TERRAFORM, tmp_path / "gpu-vm/terraform")
    shutil.copytree(ROOT / "deploy/s3-policy", tmp_path / "s3-policy")
    (tmp_path / "terraformrc").touch()
    env = {**os.environ, "TF_CLI_CONFIG_FILE": str(tmp_path / "terraformrc"), "CHECKPOINT_DISABLE": "1"}
    for words in (["fmt", "-check", "-recursive"], ["init", f"-plugin-dir={PLUGINS}", "-backend=false"], ["test"]):
        done = subprocess.run(
            ["terraform", *words, "-no-color"] if words[0] != "fmt" else ["terraform", *words],
            cwd=tmp_path / "gpu-vm/terraform",
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _noticed(tmp_path: Path, **env: str) -> tuple[list[str], str]:
    """Run farm-notice until it has nothing left to do; returns what it did and what it said."""
    path = _recorders(tmp_path, "systemctl", "aws", "sleep")
    done = subprocess.run(
        ["bash", str(FOLDER / "farm-notice")],
        env={**os.environ, **env, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    did = (tmp_path / "done").read_text().splitlines()
    assert did.pop() == "sleep infinity"
    return did, done.stdout


def _recorders(tmp_path: Path, *programs: str) -> str:
    """A PATH on which these programs only write down how they were called."""
    folder = tmp_path / "recorders"
    folder.mkdir()
    for name in programs:
        (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >>"{tmp_path}/done"\n')
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def _tools(folder: Path, *programs: str) -> str:
    """A PATH with nothing but these programs."""
    folder.mkdir()
    for name in programs:
        (folder / name).symlink_to(shutil.which(name) or name)
    return str(folder)
