"""Download one .safetensors file from the Hugging Face hub: resumable, and verified against the hub's SHA-256.

Bytes go to a hidden partial file named after that checksum; the real name appears only once they are verified. huggingface_hub
resolves the file; the transfer is here because a second run of huggingface_hub starts from zero again.
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import BinaryIO, TypeVar

import httpx

from api.cli import progress_bars
from api.cli.output import Failure, note, shortened
from api.cli.progress_bars import Advance

ANSWER_WITHIN_S = 12.0
IDLE_TRIES = 5
_CHUNK_BYTES = 1024 * 1024
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A file in a repository of the hub. Its parts become URLs and a file name, so they are validated here."""

    repo: str
    file: str
    revision: str = "main"

    def __post_init__(self) -> None:
        if not re.fullmatch(f"{_NAME}/{_NAME}", self.repo) or ".." in self.repo:
            raise Failure(f"{self.repo!r} is not a repository; one looks like OWNER/NAME")
        if not re.fullmatch(rf"(?:{_NAME}/)*{_NAME}\.safetensors", self.file) or ".." in self.file:
            raise Failure(f"{self.file!r} is not a .safetensors file of a repository; other files are not downloaded")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,127}", self.revision) or ".." in self.revision:
            raise Failure(f"{self.revision!r} is not a revision")

    @property
    def name(self) -> str:
        """The name of the saved file."""
        return self.file.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Remote:
    """The file on the hub: URL, size, checksum. `headers` may hold a token: httpx drops it on redirects to other hosts."""

    url: str
    size_bytes: int
    sha256: str
    headers: dict[str, str] = field(repr=False)


def pull(source: Source, to: Path) -> Path:
    """Download the file into the folder and return its path. A verified file that is already there stays. Raises `Failure`."""
    remote = look_up(source, to)
    path = to / source.name
    partial = to / f".{source.name}.{remote.sha256[:16]}.partial"
    try:
        to.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _expect_same(path, remote)
            return path
        with partial.open("ab") as file:
            _lock(file, partial)
            _download(file, partial, remote)
            _verify(partial, remote)
            partial.replace(path)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def look_up(source: Source, to: Path) -> Remote:
    """Fetch the file's size and checksum from the hub. Raises `Failure`."""
    # Without this the library first asks the hub something that is not about the file, which offline takes a timeout more.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Here, not above: `farm --help` need not wait for it.
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    url = hf_hub_url(source.repo, source.file, revision=source.revision)
    try:
        metadata = _within(ANSWER_WITHIN_S, lambda: get_hf_file_metadata(url, timeout=ANSWER_WITHIN_S))
    except HfHubHTTPError as error:
        raise Failure(_refusal(source, error.response.status_code)) from error
    except (HTTPError, InvalidURL, OfflineModeIsEnabled, OSError) as error:
        raise Failure(
            f"cannot reach the Hugging Face hub ({type(error).__name__}): this machine seems to be offline. "
            f"Download {url} on another machine and copy it to {to} (or any folder that FARM_CHECKPOINT_DIR names)"
        ) from error
    if metadata.size is None or not re.fullmatch(r"[0-9a-f]{64}", metadata.etag or ""):
        raise Failure(f"the hub gives no SHA-256 for {source.file}, so it cannot be verified and was not downloaded")
    pinned = hf_hub_url(source.repo, source.file, revision=metadata.commit_hash or source.revision)
    token = get_token()
    return Remote(pinned, metadata.size, str(metadata.etag), {"Authorization": f"Bearer {token}"} if token else {})


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """Return `ask()`, or raise `TimeoutError`: resolving a name on a dead network outlasts any HTTP timeout."""
    answers: SimpleQueue[Future[T]] = SimpleQueue()

    def run() -> None:
        future: Future[T] = Future()
        try:
            future.set_result(ask())
        except Exception as error:  # noqa: BLE001 - carried over to the asking thread
            future.set_exception(error)
        answers.put(future)

    Thread(target=run, name="hub", daemon=True).start()
    try:
        return answers.get(timeout=seconds).result()
    except Empty:
        raise TimeoutError from None


def _refusal(source: Source, status: int) -> str:
    if status in {401, 403, 404}:
        return f"the hub has no {source.file} in {source.repo} at {source.revision}, or you may not read it [http_{status}]"
    return f"the hub is unavailable; try again later [http_{status}]"


def _expect_same(path: Path, remote: Remote) -> None:
    if path.stat().st_size != remote.size_bytes or _sha256(path, remote.size_bytes) != remote.sha256:
        raise Failure(f"{path} exists and differs from the hub's file; move it away, then run this again")
    note(f"{path.name} is already there and its SHA-256 is correct.")


def _lock(file: BinaryIO, partial: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure(f"another farm checkpoints pull is writing {partial}") from None


def _download(file: BinaryIO, partial: Path, remote: Remote) -> None:
    """Download the rest of the file; resume broken connections as long as each brings some bytes."""
    have = _size(file, remote)
    if shutil.disk_usage(partial.parent).free < remote.size_bytes - have:
        raise Failure(f"{partial.parent} does not have enough space for {(remote.size_bytes - have) / 1e9:.1f} GB more")
    idle = 0
    with progress_bars.meter("downloading", remote.size_bytes, have) as advance:
        while have < remote.size_bytes:
            try:
                _transfer(file, have, remote, advance)
                why = "the answer ended early"
            except httpx.HTTPError as error:
                why = shortened(str(error) or type(error).__name__, 100)
            before, have = have, _size(file, remote)
            idle = 0 if have > before else idle + 1
            if idle == IDLE_TRIES:
                raise Failure(
                    f"the download broke off ({why}); {have} of {remote.size_bytes} bytes are kept; run this again to resume"
                )
            if idle:
                time.sleep(1)


def _size(file: BinaryIO, remote: Remote) -> int:
    file.flush()
    if os.fstat(file.fileno()).st_size > remote.size_bytes:
        file.truncate(0)
    return os.fstat(file.fileno()).st_size


def _transfer(file: BinaryIO, have: int, remote: Remote, advance: Advance) -> None:
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with httpx.stream("GET", remote.url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
        response.raise_for_status()
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            # The server sends everything again.
            file.truncate(0)
            advance(-have)
            have = 0
        for chunk in response.iter_raw():
            have += len(chunk)
            if have > remote.size_bytes:
                raise httpx.RemoteProtocolError("more bytes than the hub announced")
            file.write(chunk)
            advance(len(chunk))


def _verify(partial: Path, remote: Remote) -> None:
    if _sha256(partial, remote.size_bytes) != remote.sha256:
        partial.unlink()
        raise Failure(
            "the downloaded bytes do not have the SHA-256 that the hub announced and were deleted; run this again"
        )


def _sha256(path: Path, size_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, progress_bars.meter("checking", size_bytes, 0) as advance:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
