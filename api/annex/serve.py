"""The annex's own process: `python -m api.annex.serve SOCKET`. The api starts it, and it ends with the api."""

import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from api.annex import frames
from api.annex.acts import ACTS
from api.annex.frames import AnnexFrame
from shared.errors import FarmError
from shared.infra.storage import Storage
from shared.settings import Settings

# Beside the api's own processes it gets a tenth of a processor that both want; of an idle one all.
NICENESS = 10
SWITCH_S = 0.001
# No more questions are ever open than the workrooms of the api have threads.
THREADS = 32


class Answering:
    """Acts for an api, each on a thread of its own."""

    def __init__(self, api: socket.socket, storage: Storage) -> None:
        self._api = api
        self._storage = storage
        self._sending = Lock()

    def answer(self, asked: AnnexFrame) -> None:
        """Do what was asked for and tell what came of it."""
        frame = self._done(asked)
        with self._sending:
            frames.send(self._api, frame)

    def _done(self, asked: AnnexFrame) -> AnnexFrame:
        began_s = time.thread_time()
        about, data = self._made(asked)
        return AnnexFrame(asked.number, {**about, "took_s": time.thread_time() - began_s}, data)

    def _made(self, asked: AnnexFrame) -> tuple[dict[str, Any], bytes]:
        try:
            made = ACTS[asked.about["act"]](self._storage, asked.data, **asked.about["how"])
        except FarmError as error:
            return {"error": type(error).__name__, "message": str(error)}, b""
        except Exception as error:  # noqa: BLE001 - the api tells its log
            return {"bug": f"{type(error).__name__}: {error}"}, b""
        return {"made": made.about}, made.data


def main() -> None:
    """Answer until the api is gone."""
    os.nice(NICENESS)
    # Whoever stops the api stops all of its group at once; it still has requests to finish.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)
    api = socket.socket(fileno=int(sys.argv[1]))
    opening = frames.receive(api)
    if opening is None:
        return
    how = opening.about
    answering = Answering(api, Storage(Settings(**how["settings"]), tries=how["tries"], read_s=how["read_s"]))
    pool = ThreadPoolExecutor(THREADS)
    while (asked := frames.receive(api)) is not None:
        pool.submit(answering.answer, asked)
    os._exit(0)  # whatever is still being made: nobody waits for it


if __name__ == "__main__":
    main()
