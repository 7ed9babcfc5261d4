"""What runs on GPU machines: the units, the install script and the scripts beside them, run here as far as one machine allows."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hcl2
import jsonschema
import pytest
import yaml

from shared.settings import Settings
from tests import packages
from tests.support.compose import ROOT
from tests.support.servers import Handler, Server
from tests.support.waiting import LIMIT_S

FOLDER = ROOT / "deploy/gpu-vm"
TERRAFORM = FOLDER / "terraform"
PLUGINS = Path("/opt/tf-plugins")
CLOUD_CONFIG = packages.file(packages.CLOUD_CONFIG)
# A machine that changes are lost of: the same files, written to memory. An overlay's upper folder may not lie on another overlay.
ELSEWHERE = """
mount -t tmpfs tmpfs "$0"
for folder in /etc /opt /usr/local; do
    mkdir -p "$0$folder/upper" "$0$folder/work"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=$0$folder/upper,workdir=$0$folder/work" "$folder"
done
"""
SCRIPTS = ("install.sh", "farm", "farm-notice", "farm-publish")


def bash(script: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", str(FOLDER / script), *map(str, arguments)]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=LIMIT_S, env={**os.environ, **env}
    )


def tree(root: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): (path.stat().st_mode, path.read_text()) for path in files}


def test_the_scripts_are_clean() -> None:
    linter = Path(sys.executable).parent / "shellcheck"
    words = [str(linter), "--norc", *(str(FOLDER / script) for script in SCRIPTS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LIMIT_S)
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


def test_the_machine_itself_is_set_up_and_upgraded(tmp_path: Path) -> None:
    """As root on a machine with two GPUs, twice; every program that would reach further only writes down how it was called."""
    path = _machine(tmp_path)
    install = f"{FOLDER}/install.sh >/dev/null; echo >>{tmp_path}/done;"
    seen = _elsewhere(
        tmp_path,
        f"{install} echo FARM_CHECKPOINT=mine >/etc/farm/worker.env; {install} cat /etc/farm/worker.env; ls /usr/local/bin/farm",
        path,
    )
    assert seen.splitlines() == ["FARM_CHECKPOINT=mine", "/usr/local/bin/farm"]
    first, second = ((tmp_path / "done").read_text()).strip().split("\n\n")
    assert [line.split()[0] for line in first.splitlines()][:2] == ["useradd", "usermod"]
    assert "chown -R root:farm /etc/farm" in first
    assert "python3 -m venv /opt/farm/venv" in first
    pip = [line for line in first.splitlines() if line.startswith("python -m pip install")]
    assert [line.rsplit(" ", 1)[1] for line in pip] == ["torch", f"{ROOT}[client,worker,otel]"]
    assert all(f"--constraint {ROOT}/constraints.txt" in line for line in pip)
    units = [line for line in first.splitlines() if line.startswith("systemctl")]
    assert units == [
        "systemctl daemon-reload",
        "systemctl enable farm-notice.service",
        "systemctl restart farm-notice.service",
        "systemctl enable farm-worker@0.service",
        "systemctl restart farm-worker@0.service",
        "systemctl enable farm-worker@1.service",
        "systemctl restart farm-worker@1.service",
    ]
    # The upgrade: the same again, less what is there.
    assert second.splitlines() == [
        line for line in first.splitlines() if line.split()[0] != "useradd" and " -m venv " not in line
    ]


def test_the_farm_command_knows_the_machines_settings(tmp_path: Path) -> None:
    (tmp_path / "worker.env").write_text("# ours\nFARM_DATABASE_URL=postgresql://a:b@c/d?x=1&y=$z\nFARM_CHECKPOINT=a\n")
    (tmp_path / "worker-1.env").write_text('FARM_CHECKPOINT="b c"\n')
    shown = ""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nshift 2; echo "$* $FARM_DATABASE_URL $FARM_CHECKPOINT $FARM_DEVICE"\n')
    python.chmod(0o755)
    for gpu in ("0", "1"):
        done = bash("farm", "doctor", "--role", "worker", FARM_ETC=str(tmp_path), FARM_PYTHON=str(python), FARM_GPU=gpu)
        assert done.returncode == 0, done.stderr
        shown += done.stdout
    asked = "doctor --role worker postgresql://a:b@c/d?x=1&y=$z"
    assert shown.splitlines() == [f"{asked} a cuda", f"{asked} b c cuda"]


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
        timeout=LIMIT_S,
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


WANTED = {"a.b-1": 3.0, "other": 0.0}


def test_the_wanted_number_of_workers_is_published(tmp_path: Path, cloud: Server) -> None:
    named = [f'farm_checkpoint_desired_workers{{checkpoint="{name}"}} {value}\n' for name, value in WANTED.items()]
    shown = f'# HELP\nfarm_desired_workers 4.0\n{"".join(named)}farm_workers{{checkpoint="a"}} 9.0\n'
    cloud.pages = {"/metrics": shown}  # type: ignore[attr-defined]
    path = _recorders(tmp_path, "aws")
    done = bash("farm-publish", FARM_API_URL=cloud.url, PATH=path)
    assert done.returncode == 0, done.stderr
    put = "aws cloudwatch put-metric-data --namespace RenderFarm --metric-name DesiredWorkers"
    assert (tmp_path / "done").read_text().splitlines() == [
        f"{put} --value 4.0 --unit Count",
        *(f"{put} --dimensions Checkpoint={name} --value {value} --unit Count" for name, value in WANTED.items()),
    ]


@pytest.mark.parametrize(("key", "sent"), [("", None), ("k" * 16, f"Bearer {'k' * 16}")], ids=["open", "with a key"])
def test_metrics_are_read_where_they_are_with_their_key(
    tmp_path: Path, cloud: Server, key: str, sent: str | None
) -> None:
    cloud.pages = {"/apart": "farm_desired_workers 1.0\n"}  # type: ignore[attr-defined]
    where = {"FARM_API_URL": "http://127.0.0.1:9", "FARM_METRICS_URL": f"{cloud.url}/apart", "FARM_METRICS_KEY": key}
    done = bash("farm-publish", **where, PATH=_recorders(tmp_path, "aws"))
    assert done.returncode == 0, done.stderr
    [(asked, _, authorization)] = cloud.asked
    assert (asked, authorization) == ("GET /apart", sent)


def test_a_farm_that_shows_nothing_is_an_error_that_says_so(tmp_path: Path, cloud: Server) -> None:
    cloud.pages = {"/metrics": "farm_database_up 0.0\n"}  # type: ignore[attr-defined]
    done = bash("farm-publish", FARM_API_URL=cloud.url, PATH=_recorders(tmp_path, "aws"))
    assert done.returncode == 1
    assert "farm_desired_workers" in done.stderr


def user_data(**changes: str) -> str:
    """What cloud-init is given, with every variable of the template filled in."""
    template = (TERRAFORM / "cloud-init.yaml.tftpl").read_text()
    given = re.search(r"cloud-init\.yaml\.tftpl\", \{\n(.*?)\}\)", (TERRAFORM / "main.tf").read_text(), re.DOTALL)
    assert given
    names = set(re.findall(r"^\s*(\w+) *=", given[1], re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)\}", template)) == names
    values = {
        "settings_parameter": "/farm/worker.env",
        "checkpoints_uri": "s3://r/c/",
        "release_uri": "s3://r/farm.tar.gz",
        "settings": "FARM_CHECKPOINT=a,b FARM_CHECKPOINT_DIR=/opt/farm/checkpoints FARM_PRELOAD=b",
        **changes,
    }
    return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], f"a-{found[1]}"), template)


@pytest.mark.skipif(CLOUD_CONFIG is None, reason="cloud-init's schema (Debian: cloud-init) is not here")
def test_cloud_init_reads_the_user_data() -> None:
    assert CLOUD_CONFIG
    schema = json.loads(CLOUD_CONFIG.read_text())
    judge = jsonschema.Draft4Validator(schema)
    config = yaml.safe_load(user_data())
    judge.validate(config)
    # It says nothing of keys that it does not know.
    assert set(config) <= {key for module in schema["$defs"].values() for key in module.get("properties", ())}
    with pytest.raises(jsonschema.ValidationError):
        judge.validate({**config, "runcmd": {"first": "boot"}})


@pytest.mark.parametrize("folder", ["s3://r/c/", ""], ids=["a folder", "the bucket alone"])
def test_the_first_boot_fetches_settings_checkpoints_and_release_and_installs(tmp_path: Path, folder: str) -> None:
    config = yaml.safe_load(user_data(checkpoints_uri=folder))
    assert config["runcmd"] == [["/usr/local/sbin/farm-first-boot"]]
    (script,) = [file["content"] for file in config["write_files"] if file["path"] == config["runcmd"][0][0]]
    boot = tmp_path / "farm-first-boot"
    boot.write_text(script)
    boot.chmod(0o755)
    linter = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([linter, "--norc", boot], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout
    archive = tmp_path / "farm.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", ROOT, "deploy/gpu-vm", "constraints.txt"], check=True)
    path = _machine(tmp_path)
    (tmp_path / "recorders/aws").write_text(
        f"""#!/bin/bash
echo "aws $*" >>"{tmp_path}/done"
case "$*" in
    ssm*) echo FARM_REDIS_URL=redis://somewhere ;;
    *" -") cat "{archive}" ;;
    *sync*) touch "${{@: -1}}/a.safetensors" "${{@: -1}}/b.safetensors" ;;
esac
"""
    )
    seen = _elsewhere(
        tmp_path,
        f"{boot} >/dev/null; cat /etc/farm/worker.env; stat -c %a /etc/farm/worker.env; ls /opt/farm/checkpoints",
        path,
    )
    assert [line for line in seen.splitlines() if line] == [
        "FARM_REDIS_URL=redis://somewhere",
        "FARM_CHECKPOINT=a,b",
        "FARM_CHECKPOINT_DIR=/opt/farm/checkpoints",
        "FARM_PRELOAD=b",
        "640",
        *(["a.safetensors", "b.safetensors"] if folder else []),
    ]
    did = (tmp_path / "done").read_text()
    assert "systemctl restart farm-worker@1.service" in did
    assert "/opt/farm/release[client,worker,otel]" in did


def test_terraform_reads_as_it_should() -> None:
    """What holds without the tool: every file parses, every variable is declared and used, the drain is waited for."""
    parsed = {file.name: hcl2.loads(file.read_text()) for file in TERRAFORM.glob("*.tf")}
    declared = {name.strip('"') for block in parsed["variables.tf"]["variable"] for name in block}
    used = set(re.findall(r"\bvar\.(\w+)", "".join(file.read_text() for file in TERRAFORM.glob("*.tf"))))
    assert used == declared
    # Whoever serves every checkpoint follows the whole farm's number, which has no dimension.
    assert "for_each = local.alone" in (TERRAFORM / "main.tf").read_text()
    kinds = {kind.strip('"') for block in parsed["main.tf"]["resource"] for kind in block}
    assert {"aws_autoscaling_group", "aws_autoscaling_lifecycle_hook", "aws_autoscaling_policy"} <= kinds
    assert "aws_cloudwatch_metric_alarm" in kinds  # from zero


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
            timeout=LIMIT_S,
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
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    did = (tmp_path / "done").read_text().splitlines()
    assert did.pop() == "sleep infinity"
    return did, done.stdout


def _machine(tmp_path: Path) -> str:
    """A PATH on which a machine seems to have two GPUs, and whatever would leave it writes down how it was called."""
    path = _recorders(tmp_path, "aws", "systemctl", "usermod", "chown", "useradd")
    folder = tmp_path / "recorders"
    record = f'echo "$(basename "$0") $*" >>"{tmp_path}/done"'
    scripts = {
        "nvidia-smi": "echo GPU 0; echo GPU 1",
        "id": f'grep -q ^useradd "{tmp_path}/done"',
        "python3": f'{record}\nmkdir -p "$3/bin"; cp "{folder}/python" "$3/bin/python"',
        "python": record,
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "done").touch()
    return path


def _elsewhere(tmp_path: Path, script: str, path: str) -> str:
    """Run a script that writes into /etc, /opt and /usr/local of a machine that is gone afterwards; returns what it printed."""
    (tmp_path / "memory").mkdir()
    inside = ["unshare", "--mount", "--propagation", "private", "bash", "-euc"]
    memory = str(tmp_path / "memory")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, ELSEWHERE, memory], capture_output=True, check=False).returncode
    ):
        pytest.skip("this user may not mount")
    env = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    done = subprocess.run(
        [*inside, ELSEWHERE + script, memory],
        env={**env, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
