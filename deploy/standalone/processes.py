"""Command lines of the farm's own processes: migration, api, courier and gpu workers."""

import json
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from deploy.standalone import ports
from deploy.standalone.program import Program, python_module
from deploy.standalone.serving import PlannedWorker

# Torch, the checkpoint and a warm-up of the device come before a worker is ready; a cold disk can take minutes.
WORKER_READY_S = 600.0
# A worker finishes what it renders within FARM_DRAIN_SECONDS (25 by default), then hands it back.
WORKER_GRACE_S = 40.0
# It lets requests finish for five seconds.
API_GRACE_S = 10.0


def migration(env: Mapping[str, str]) -> Program:
    """Return the program that migrates the database."""
    return Program(name="migrate", argv=python_module("shared.migrations"), env=env, once=True)


def api(env: Mapping[str, str], host: str, port: int, url: str) -> Program:
    """Return the api's program; ready when `/readyz` answers, so when all its dependencies do."""
    return Program(
        name="api",
        argv=python_module("api.serve", "--host", host, "--port", str(port)),
        env={**env, "FARM_AUTH": auth(env, host)},
        ready=lambda: _get(f"{url}/readyz") is not None,
        grace_s=API_GRACE_S,
    )


def auth(env: Mapping[str, str], host: str) -> str:
    """Return FARM_AUTH for an api on `host`; `auto` requires keys on every address but a loopback one."""
    choice = env.get("FARM_AUTH") or "auto"
    return choice if choice != "auto" else "none" if ports.is_loopback(host) else "keys"


def courier(env: Mapping[str, str]) -> Program:
    """Return the cpu worker's program, with Celery's beat for its periodic tasks."""
    return Program(name="courier", argv=_celery("worker.cpu", "courier", 4, "--beat"), env=env)


def gpu_worker(env: Mapping[str, str], worker: PlannedWorker, url: str) -> Program:
    """Return a gpu worker's program; ready when the api lists it as alive and fit."""
    return Program(
        name=worker.name,
        argv=_celery("worker.gpu", worker.name, worker.slots),
        env={**env, **worker.env},
        ready=lambda: _is_listed(url, worker.name, env.get("FARM_ADMIN_KEY")),
        ready_within_s=WORKER_READY_S,
        grace_s=WORKER_GRACE_S,
    )


def _celery(app: str, name: str, slots: int, *extra: str) -> tuple[str, ...]:
    return python_module(
        *("celery", "-A", app, "worker", "--pool", "threads", "--concurrency", str(slots), "-n", f"{name}@%h"),
        *("--without-gossip", "--without-mingle", *extra),
    )


def _is_listed(url: str, name: str, key: str | None) -> bool:
    # One that was drained stays idle, and is as ready as it will be.
    listing = _get(f"{url}/v1/workers", key) or {}
    with suppress(KeyError, TypeError):
        fit = [one["id"] for one in listing["workers"] if one["is_alive"] and not one["unfit"]]
        return any(one.startswith(f"{name}@") for one in fit)
    return False


def _get(url: str, key: str | None = None) -> Any:
    """Return the JSON at a URL; None for any failure."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    with suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - our own http
        return json.load(response)
    return None
