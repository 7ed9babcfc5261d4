"""A real nginx on loopback that serves a farm beneath a path of its own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.standalone import ports
from tests import packages
from tests.support.waiting import LIMIT_S, until

CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_max_body_size 33m;
  client_body_temp_path {folder}/bodies;
  proxy_temp_path {folder}/proxied;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location {prefix}/ {{
      proxy_pass {upstream};
      proxy_http_version 1.1;
      proxy_buffering off;
      {headers}
    }}
  }}
}}
"""
FORWARDED = """
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
"""


@contextmanager
def in_front_of(farm: str, prefix: str, folder: Path, *, strips: bool, headers: str = FORWARDED) -> Iterator[str]:
    """Serve a farm at `prefix`, which the proxy takes off or leaves; yields the address with the prefix."""
    program = packages.program("nginx")
    if program is None:
        pytest.skip("no nginx here: install the system's package nginx-light")
    folder.mkdir()
    port = ports.pick("127.0.0.1")
    config = folder / "nginx.conf"
    upstream = f"{farm}/" if strips else farm
    config.write_text(CONFIG.format(folder=folder, port=port, prefix=prefix, upstream=upstream, headers=headers))
    command = [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            assert until(lambda: process.poll() is not None or _listens(port))
            assert process.poll() is None, (folder / "error.log").read_text()
            yield f"http://127.0.0.1:{port}{prefix}"
        finally:
            process.terminate()
            process.wait(LIMIT_S)


def _listens(port: int) -> bool:
    try:
        ports.listen("127.0.0.1", port).close()
    except OSError:
        return True
    return False
