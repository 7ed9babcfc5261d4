"""Webhook delivery: claim due deliveries, send them signed, record their outcomes.

Any number of couriers may run. A slow or dead receiver holds up no other: each has a few places, all receivers of an owner have a
quarter, and those whose last delivery failed or that have never answered share places apart, so that receivers that work always
find one free.
"""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from threading import Event, Lock, Thread

import structlog
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from shared.errors import FarmError
from shared.infra import tracing
from shared.infra.db import Database
from shared.infra.outbound_http import OutboundHttp, Reply
from shared.jobs.outbox import EventType
from shared.settings import Settings
from shared.webhooks import deliveries
from shared.webhooks.deliveries import Due, Outcome

SEND_SECONDS = 15.0
LEASE_SECONDS = 30.0  # what a courier that died holds up a message for; must exceed any attempt
SWEEP_SECONDS = 1.0
MAX_RETRY_AFTER_S = 86_400.0
# After each failed attempt, in seconds; 31 hours in all, which outlasts a night and a working day.
BACKOFF_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600)
JITTER = 0.2  # of each wait, either way

log = structlog.get_logger(__name__)


class Ward:
    """The places for one kind of receivers, and who holds them; each place is a thread, made when needed."""

    def __init__(self, *, ailing: bool, places: int, per_lane: int) -> None:
        self.ailing = ailing
        self.places = places
        self.per_lane = per_lane
        self.per_owner = places // 4
        self._lock = Lock()
        self._lanes: Counter[str] = Counter()
        self._owners: Counter[str] = Counter()

    def claim(self, session: Session, now: datetime | None) -> list[Due]:
        """Claim deliveries for the places that are free. Each must `enter`, and `leave` when it is settled."""
        with self._lock:
            busy, held = dict(self._lanes), dict(self._owners)
        return deliveries.claim(
            session,
            limit=self.places - sum(held.values()),
            per_owner=self.per_owner,
            per_lane=self.per_lane,
            ailing=self.ailing,
            lease_s=LEASE_SECONDS,
            busy=busy,
            held=held,
            now=now,
        )

    def enter(self, due: Due) -> None:
        """Take a place."""
        self._count(due, 1)

    def leave(self, due: Due) -> None:
        """Give it back."""
        self._count(due, -1)

    def _count(self, due: Due, places: int) -> None:
        with self._lock:
            for counter, who in ((self._lanes, due.lane), (self._owners, due.owner)):
                counter[who] += places
                if not counter[who]:
                    del counter[who]


class Courier:
    """Delivers webhooks until stopped. `clock` replaces the database's in tests."""

    def __init__(
        self,
        db: Database,
        outside: OutboundHttp,
        settings: Settings,
        *,
        rng: Random | None = None,
        clock: Callable[[], datetime | None] = lambda: None,
        sent: Callable[[Outcome], None] = lambda _outcome: None,
    ) -> None:
        self._db = db
        self._outside = outside
        self._settings = settings
        self._rng = rng or Random()  # noqa: S311 - jitter
        self._clock = clock
        self._sent = sent
        self._wards = (Ward(ailing=False, places=96, per_lane=4), Ward(ailing=True, places=32, per_lane=1))
        self._pool = ThreadPoolExecutor(sum(ward.places for ward in self._wards), thread_name_prefix="webhook")
        self._awake = Event()
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Claim due deliveries now, instead of at the next sweep."""
        self._awake.set()

    def stop(self) -> None:
        """Claim nothing more, and wait for the deliveries under way."""
        self._stopped.set()
        self._awake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def hand_out(self) -> int:
        """Claim due deliveries for the free places, and send each on a thread. Returns how many."""
        with self._db.transaction() as session:
            claimed = [(ward, due) for ward in self._wards for due in ward.claim(session, self._clock())]
        for ward, due in claimed:
            ward.enter(due)
            self._pool.submit(self._carry, ward, due)
        return len(claimed)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._awake.wait(SWEEP_SECONDS)
            self._awake.clear()
            try:
                while not self._stopped.is_set() and self.hand_out():
                    pass
            except FarmError as error:
                log.warning("webhooks.postponed", **error.log_fields)
            except Exception:  # whatever it was, the next round may do
                log.exception("webhooks.crashed")

    def _carry(self, ward: Ward, due: Due) -> None:
        try:
            with tracing.job_span("webhook.deliver", due.job_id, type=due.type, attempt=due.attempt):
                outcome = send(self._outside, due)
            self._sent(outcome)
            with self._db.transaction() as session:
                deliveries.settle(
                    session,
                    due,
                    outcome,
                    retry_in_s=None if due.type == EventType.PROGRESS else backoff_s(due.tries, self._rng),
                    suspend_after_s=self._settings.webhook_suspend_seconds,
                    probe_s=self._settings.webhook_probe_seconds,
                    now=self._clock(),
                )
            log.info(
                "webhook.sent", job_id=str(due.job_id), delivery=str(due.id), status=outcome.status, error=outcome.error
            )
        except Exception:  # the lease runs out and it goes again
            log.exception("webhook.unsettled", delivery=str(due.id))
        finally:
            ward.leave(due)
            self.wake()


def send(outside: OutboundHttp, due: Due) -> Outcome:
    """Make one attempt. An error is an outcome, too."""
    started = time.monotonic()
    try:
        reply = outside.post(
            due.url, due.body.encode(), headers=signed(due, datetime.now(UTC)), deadline_s=SEND_SECONDS
        )
    except FarmError as error:
        return Outcome(None, str(error), time.monotonic() - started)
    return Outcome(reply.status, _refusal(reply), time.monotonic() - started, _retry_after_s(reply))


def signed(due: Due, at: datetime) -> dict[str, str]:
    """Return the headers of Standard Webhooks, with one signature for each secret that lives."""
    signatures = [Webhook(secret).sign(due.message_id, at, due.body) for secret in due.secrets]
    return {
        "Content-Type": "application/json",
        "webhook-id": due.message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def backoff_s(tries: int, rng: Random) -> float | None:
    """Return the seconds until the next attempt, after `tries` failed ones and one more; None to give up."""
    if tries >= len(BACKOFF_S):
        return None
    return BACKOFF_S[tries] * rng.uniform(1 - JITTER, 1 + JITTER)


def _refusal(reply: Reply) -> str | None:
    if 200 <= reply.status < 300:
        return None
    if 300 <= reply.status < 400:
        return f"The receiver answered {reply.status}; redirects are not followed, so register the new URL."
    return f"The receiver answered {reply.status}."


def _retry_after_s(reply: Reply) -> float | None:
    value = reply.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        wait_s = (
            float(value) if value.isdecimal() else (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError):
        return None
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)
