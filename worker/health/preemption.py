"""Preemption notices of GPU clouds: a file that appears, or a metadata URL that answers."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

import structlog
import urllib3

POLL_S = 2.0
_TIMEOUT = urllib3.Timeout(connect=1.0, read=2.0)
# What clouds want to see before they answer: Google's, Azure's.
_HEADERS = {"Metadata-Flavor": "Google", "Metadata": "true"}
# What Google answers while nothing is planned.
_NOTHING = {b"", b"FALSE", b"NONE"}
_MAX_BYTES = 64 * 1024

log = structlog.get_logger(__name__)


class Notices:
    """Looks for a notice and asks the worker to `leave`, once."""

    def __init__(self, leave: Callable[[], None], *, file: Path | None, url: str | None) -> None:
        self._leave = leave
        self._file = file
        self._url = url
        self._http = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
        self._was_noticed = False

    def check(self) -> None:
        """Look for a notice, unless one was found before."""
        if not self._was_noticed and (self._is_filed() or self._is_answered()):
            self._was_noticed = True
            log.warning("worker.preempted")
            self._leave()

    def _is_filed(self) -> bool:
        return self._file is not None and self._file.exists()

    def _is_answered(self) -> bool:
        if self._url is None:
            return False
        try:
            status, body = self._get(self._url, _HEADERS)
            if status == 401:
                status, body = self._get(self._url, {**_HEADERS, "X-aws-ec2-metadata-token": self._token(self._url)})
        except (urllib3.exceptions.HTTPError, OSError) as error:
            log.debug("preemption.unknown", error=str(error))
            return False
        return status == 200 and body.strip() not in _NOTHING

    def _token(self, url: str) -> str:
        """Ask AWS for the token that its second version of the service wants to see."""
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        _, body = self._get(urljoin(url, "/latest/api/token"), headers, method="PUT")
        text = body.decode("latin-1").strip()
        return text if text.isprintable() else ""

    def _get(self, url: str, headers: dict[str, str], method: str = "GET") -> tuple[int, bytes]:
        answer = self._http.request(method, url, headers=headers, redirect=False, preload_content=False)
        try:
            return answer.status, answer.read(_MAX_BYTES)
        finally:
            answer.release_conn()
