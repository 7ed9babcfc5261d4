"""Well-behaved clients: they submit, poll, cancel and fetch, retry failed requests, and record all answers."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import urllib3
from urllib3.exceptions import HTTPError

from shared.vocabulary.states import JobState
from tests.chaos import marked
from tests.chaos.history import Seen
from tests.chaos.sketch import POISON

TIMEOUT_S = 10.0
PATIENCE_S = 0.5  # between tries; a real client would wait as long as Retry-After says
CANCELED, FETCHED, HOOKED = 0.08, 0.05, 0.5  # shares of all jobs
LONG = 0.05
POLL_S = (0.5, 4.0)


@dataclass(slots=True)
class Errand:
    """A job that a client follows."""

    job: UUID
    next_poll: float
    pause_s: float = POLL_S[0]
    cancel_at: float | None = None


@dataclass(slots=True)
class Plan:
    """What one client is to do: how many jobs, over how long, in seconds; `webhook` is where it wants to hear of some."""

    jobs: int
    duration_s: float
    poison: int = 0
    webhook: Mapping[str, str] | None = None


@dataclass(slots=True)
class Client:
    """One thread. `run` returns when it has seen every job of its own end, or when it is told to stop."""

    number: int
    url: str
    seed: int
    plan: Plan
    stop: threading.Event
    seen: list[Seen] = field(default_factory=list)
    _http: urllib3.PoolManager = field(init=False)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._http = urllib3.PoolManager(timeout=TIMEOUT_S, retries=False, maxsize=2)
        self._random = random.Random(f"{self.seed}/{self.number}")

    def run(self) -> None:
        began = time.time()
        errands: list[Errand] = []
        submitted = 0
        while not self.stop.is_set() and (submitted < self.plan.jobs or errands):
            due = self.plan.jobs * min(1.0, (time.time() - began) / self.plan.duration_s)
            if submitted < due:
                errands += self._submit(submitted)
                submitted += 1
            elif not self._follow(errands):
                self.stop.wait(0.02)
        self._http.clear()

    def _submit(self, number: int) -> list[Errand]:
        """Submit until an answer says that it is accepted; a repeat carries the same key, so it is the same job."""
        key, body = str(uuid4()), self._body(number)
        while not self.stop.is_set():
            answer = self._ask("submit", "POST", "/v1/jobs", body=body, key=key)
            if answer.status is not None and answer.status < 300 and answer.job is not None:
                cancel = self._random.random() < CANCELED
                now = time.time()
                return [Errand(answer.job, now, cancel_at=now + self._random.uniform(0, 1.5) if cancel else None)]
            self.stop.wait(PATIENCE_S)
        return []

    def _body(self, number: int) -> dict[str, Any]:
        rng = self._random
        steps = rng.randint(80, 150) if rng.random() < LONG else rng.randint(1, 15)
        poison = number % max(1, self.plan.jobs // self.plan.poison) == 0 if self.plan.poison else False
        hook = self.plan.webhook if rng.random() < HOOKED else None
        return {
            "prompt": f"{POISON if poison else 'a red circle'} {self.number} {number}",
            "width": 64,
            "height": 64,
            "steps": 10 if poison else steps,
            "seed": rng.randrange(2**32),
            "num_images": rng.choice([1, 1, 1, 2]),
            "sampler": "euler",
            "checkpoint": rng.choice(marked.NAMES),
            **({"webhook": hook} if hook else {}),
        }

    def _follow(self, errands: list[Errand]) -> bool:
        """Cancel or poll the first job whose time has come; whether there was one."""
        now = time.time()
        for errand in errands:
            if errand.cancel_at is not None and now >= errand.cancel_at:
                answer = self._ask("cancel", "POST", f"/v1/jobs/{errand.job}/cancel", job=errand.job)
                # An unknown outcome is asked again: a second cancel does no harm.
                errand.cancel_at = None if answer.status in {200, 404, 409} else time.time() + PATIENCE_S
                return True
            if now >= errand.next_poll:
                answer = self._ask("poll", "GET", f"/v1/jobs/{errand.job}", job=errand.job)
                errand.pause_s = min(POLL_S[1], errand.pause_s * 1.5)
                errand.next_poll = time.time() + errand.pause_s
                if answer.state is not None and JobState(answer.state).is_final and errand.cancel_at is None:
                    self._fetch(answer)
                    errands.remove(errand)
                return True
        return False

    def _fetch(self, ended: Seen) -> None:
        if ended.state != JobState.SUCCEEDED or self._random.random() >= FETCHED:
            return
        self._ask("fetch", "GET", f"/v1/jobs/{ended.job}/images/0", job=ended.job)

    def _ask(
        self,
        act: str,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        key: str | None = None,
        job: UUID | None = None,
    ) -> Seen:
        headers = {"Idempotency-Key": key} if key else {}
        began = time.time()
        try:
            response = self._http.request(method, self.url + path, json=body, headers=headers, redirect=act == "fetch")
        except HTTPError:
            answer = self._note(act, began, None, key=key, job=job, checkpoint=body and body["checkpoint"])
        else:
            found = _told(response) if act != "fetch" else {}
            ok = response.status < 300
            answer = self._note(
                act,
                began,
                response.status,
                key=key,
                checkpoint=body and body["checkpoint"],
                hooked=ok and body is not None and "webhook" in body,
                job=UUID(found["id"]) if ok and found else job,
                state=found.get("state") if ok else None,
                version=found.get("version") if ok else None,
                code=found.get("code"),
                retry_after=response.headers.get("Retry-After"),
                sha256=hashlib.sha256(response.data).hexdigest() if ok and act == "fetch" else None,
            )
        return answer

    def _note(self, act: str, began: float, status: int | None, **fields: Any) -> Seen:
        seen = Seen(self.number, len(self.seen), act, began, time.time(), status, **fields)
        self.seen.append(seen)
        return seen


def _told(response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    try:
        found = json.loads(response.data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
