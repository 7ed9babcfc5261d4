"""A real PgBouncer before a Postgres, with few connections for many clients."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from deploy.standalone import ports
from tests import packages
from tests.support.waiting import until

CONFIG = """
[databases]
{database} = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {connections}
max_client_conn = 500
"""


@contextmanager
def pooled(url: str, folder: Path, *, mode: str = "transaction", connections: int = 4) -> Iterator[str]:
    """Run a pooler before the database of `url` while the block lasts; yields the URL through it."""
    program = packages.program("pgbouncer")
    if program is None:
        pytest.skip("there is no pgbouncer")
    behind = make_url(url)
    own = ports.pick("127.0.0.1")
    file = folder / "pgbouncer.ini"
    file.write_text(
        CONFIG.format(
            **{name: getattr(behind, name) for name in ("database", "host", "port")},
            user=behind.username,
            password=behind.password,
            own=own,
            mode=mode,
            connections=connections,
        )
    )
    # It refuses to serve as root.
    account = ("-u", "nobody") if os.geteuid() == 0 else ()
    with (folder / "pgbouncer.log").open("ab") as log:
        process = subprocess.Popen([program, *account, str(file)], stdout=log, stderr=log)
    front = behind.set(port=own)
    try:
        assert until(lambda: _answers(front.render_as_string(hide_password=False))), "the pooler does not answer"
        yield front.render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    with suppress(psycopg.Error):
        psycopg.connect(url.replace("+psycopg", ""), connect_timeout=3).close()
        return True
    return False
