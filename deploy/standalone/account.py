"""Unprivileged account for Postgres when the farm runs as root: Postgres refuses to run as root.

The account gets the least rights that it needs: its own data folder, and passage (o+x, never o+r) through the folders above.
"""

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from deploy.standalone.program import Account, StartFailed

CANDIDATES = ("postgres", "pgserver", "nobody")


def unprivileged(folder: Path) -> Account:
    """Return the account for a data folder: its present owner, else the first candidate that exists on this machine."""
    if folder.exists() and (owner := folder.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in CANDIDATES:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise StartFailed(
        f"Postgres will not run as root, and this machine has none of the users {', '.join(CANDIDATES)}; create one, "
        "run the farm as an ordinary user, or set FARM_DATABASE_URL."
    )


def give(path: Path, account: Account) -> None:
    """Chown a folder and its content to the account, unless that owns it already."""
    if path.stat().st_uid == account.uid:
        return
    for entry in (path, *path.rglob("*")):
        os.chown(entry, account.uid, account.gid, follow_symlinks=False)


def open_way(folder: Path, account: Account, say: Callable[[str], None]) -> None:
    """Set o+x on every folder above `folder`; report folders that are not the farm's own."""
    for above in _closed(folder, account):
        above.chmod(stat.S_IMODE(above.stat().st_mode) | stat.S_IXOTH)
        if above != folder.parent:
            say(f"{above} may now be passed through (o+x) by other users, so that Postgres reaches {folder}")


def can_run(program: Path, account: Account) -> bool:
    """Whether the account may execute a program at its present path."""
    try:
        probe = subprocess.run(
            [program, "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=30,
            check=False,
        )
    except OSError:
        return False
    return probe.returncode == 0


def copy_readable(source: Path, target: Path) -> None:
    """Copy a tree, readable and executable for everyone; an atomic rename puts it in place."""
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh, symlinks=True)
    for entry in (fresh, *fresh.rglob("*")):
        if not entry.is_symlink():
            runs = entry.is_dir() or os.access(entry, os.X_OK) or entry.stat().st_mode & stat.S_IXUSR
            entry.chmod(0o755 if runs else 0o644)
    fresh.rename(target)


def _closed(folder: Path, account: Account) -> Iterator[Path]:
    for above in folder.parents:
        status = above.stat()
        owner_passes = status.st_uid == account.uid and status.st_mode & stat.S_IXUSR
        if not owner_passes and not status.st_mode & stat.S_IXOTH:
            yield above
