"""`farm doctor`: check every dependency of the farm and say how to fix what is wrong.

Changes nothing but probe objects in the storage (`bucket_probes`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, TypeAlias

import typer

from api.cli import checks
from api.cli.bucket_roles import Role
from api.cli.checks import Finding, Level
from api.cli.client import Front
from api.cli.output import Failure, complain, table

Check: TypeAlias = Callable[[], Finding]


def doctor(
    context: typer.Context,
    role: Annotated[Role | None, typer.Option(help="Role of the S3 key on this machine; any by default.")] = None,
) -> None:
    """Check every dependency, the GPU and the checkpoint; exit 1 if anything fails."""
    front: Front = context.obj
    findings = [_run(check) for check in _all_checks(front, role)]
    table(("CHECK", "STATUS", "FINDING", "FIX"), [(one.what, one.level, one.detail, one.fix) for one in findings])
    failed = [one.what for one in findings if one.level is Level.FAIL]
    if failed:
        complain(f"failed: {', '.join(failed)}")
        raise typer.Exit(1)


def _all_checks(front: Front, role: Role | None) -> Iterator[Check]:
    yield checks.python
    yield checks.postgres if checks.is_remote("DATABASE") else checks.embedded_postgres
    yield checks.redis if checks.is_remote("REDIS") else checks.embedded_redis
    yield partial(checks.storage, role) if checks.is_remote("S3") else checks.embedded_storage
    yield partial(checks.api, front)
    yield partial(checks.workers, front)
    yield checks.gpu
    yield checks.torch
    yield checks.checkpoint
    yield checks.disk


def _run(check: Check) -> Finding:
    name = getattr(check, "__name__", None) or getattr(check, "func", check).__name__
    try:
        return check()
    except Failure as error:
        return Finding(name, Level.FAIL, str(error), "correct this setting")
    except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, and the others still count
        return Finding(name, Level.FAIL, f"{type(error).__name__}: {error}", "see the message")
