"""The annex as the api sees it: asked from threads of workrooms, started when first needed, and again after its death."""

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any

import structlog
from pydantic import SecretStr

from api.annex import frames
from api.annex.acts import ACTS, Made
from api.annex.frames import AnnexFrame
from api.limits import workrooms
from shared.errors import FarmError, TooBusy
from shared.infra.storage import Storage
from shared.settings import Settings

# For one act, its wait for others' included. One that takes longer has hung: the process is ended, and another started.
DEADLINE_S = 60.0
TRIES = 2

log = structlog.get_logger(__name__)


class Annex:
    """Does acts in a process of lower priority, so that they take neither the interpreter nor a processor from requests.

    Thread-safe; threads wait without the interpreter. `storage` serves acts that are done here, by threads of the api.
    """

    def __init__(self, settings: Settings, storage: Storage, *, tries: int, read_s: float) -> None:
        self._storage = storage
        self._opening = {"settings": _of_storage(settings), "tries": tries, "read_s": read_s}
        self._lock = Lock()
        self._numbers = itertools.count(1)
        self._running: _Process | None = None

    def do(self, act: str, data: bytes = b"", *, here: bool = False, **how: Any) -> Made:
        """Do an act and return what it made. `here`: in this thread, for what is small and comes alone.

        Raises what the act raises of `FarmError`, `TooBusy` if it is not done in time.
        """
        if here:
            return ACTS[act](self._storage, data, **how)
        for _ in range(TRIES):
            answer = self._asked(AnnexFrame(next(self._numbers), {"act": act, "how": how}, data))
            if answer is not None:
                return _made(answer)
        raise TooBusy(f"The process for costly work ended twice while it did this ({act}); retry in a moment.")

    @property
    def pid(self) -> int | None:
        """The process, if one was needed so far."""
        return self._running.pid if self._running else None

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._running is not None:
                self._running.end()

    def _asked(self, frame: AnnexFrame) -> AnnexFrame | None:
        """Return the answer to a frame; None if the process has ended meanwhile. Raises `TooBusy` after the deadline."""
        with self._lock:
            if self._running is None or self._running.has_ended:
                self._running = _Process(self._opening)
            process = self._running
        answer = process.ask(frame)
        try:
            return answer.result(DEADLINE_S)
        except TimeoutError:
            log.warning("annex.hung", act=frame.about["act"], within_s=DEADLINE_S)
            process.end()
            raise TooBusy("This took longer than the api waits for; retry in a moment.") from None


class _Process:
    """One run of the process, and the thread that hears its answers."""

    def __init__(self, opening: dict[str, Any]) -> None:
        ours, theirs = frames.ends(patience_s=DEADLINE_S)
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                (sys.executable, "-m", "api.annex.serve", str(number)),
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._socket: socket.socket = ours
        self._sending, self._lock = Lock(), Lock()
        self._open: dict[int, Future[AnnexFrame | None]] = {}
        self.has_ended = False
        self.pid = self._process.pid
        self._hearing = Thread(target=self._hear, name="annex", daemon=True)
        self._hearing.start()
        self.ask(AnnexFrame(0, opening, b""))

    def ask(self, frame: AnnexFrame) -> "Future[AnnexFrame | None]":
        """Send a frame; the future has the answer, or None once the process has ended."""
        answer: Future[AnnexFrame | None] = Future()
        with self._lock:
            if self.has_ended:
                answer.set_result(None)
                return answer
            if frame.number:
                self._open[frame.number] = answer
        try:
            with self._sending:
                frames.send(self._socket, frame)
        except OSError:
            self._process.kill()  # it has ended or hangs; `_hear` hears of it
        return answer

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._hearing.join()

    def _hear(self) -> None:
        for answer in self._answers():
            with self._lock:
                asked = self._open.pop(answer.number, None)
            if asked is not None:
                asked.set_result(answer)
        with self._lock:
            self.has_ended = True
            left = list(self._open.values())
        self._process.kill()
        status = self._process.wait()
        self._socket.close()
        if left:
            log.warning("annex.died", status=status, open=len(left))
        for one in left:
            one.set_result(None)

    def _answers(self) -> Iterator[AnnexFrame]:
        while (answer := frames.receive(self._socket)) is not None:
            yield answer


def _made(answer: AnnexFrame) -> Made:
    about = answer.about
    workrooms.note_spent(about["took_s"])
    if "error" in about:
        raise _errors()[about["error"]](about["message"])
    if "bug" in about:
        raise RuntimeError(about["bug"])
    return Made(about["made"], bytes(answer.data))


def _errors() -> dict[str, type[FarmError]]:
    kinds, rest = {}, [FarmError]
    while rest:
        kind = rest.pop()
        kinds[kind.__name__] = kind
        rest += kind.__subclasses__()
    return kinds


def _of_storage(settings: Settings) -> dict[str, Any]:
    """Return the settings of the storage, as a process that is handed them reads them."""
    names = [name for name in type(settings).model_fields if name.startswith("s3_")] + ["connect_seconds"]
    values = {name: getattr(settings, name) for name in names}
    return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in values.items()}
