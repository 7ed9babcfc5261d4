"""The end of a drain: who is waited for, and who is not."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import DatabaseUnavailable
from worker.slots import drain


@dataclass
class Site:
    """Jobs that end at given moments, and a device whose present tick ends at another; time passes only in pauses."""

    ends: dict[str, float]
    tick_ends: float = 0.0
    now: float = 0.0
    handed_back: list[str] = field(default_factory=list)
    is_database_away: bool = False

    def running(self) -> list[Any]:
        claims = {name: SimpleNamespace(job_id=name, attempt=1) for name, end in self.ends.items() if end > self.now}
        return [SimpleNamespace(claim=claim) for claim in claims.values()]

    def hand_back(self, running: Any) -> None:
        if self.is_database_away:
            raise DatabaseUnavailable
        self.handed_back.append(running.claim.job_id)

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def finish(self) -> bool:
        tick_s = lambda: self.now + 0.001 if self.now < self.tick_ends else 0.0  # noqa: E731
        return drain.wait_or_release(self.running, self.hand_back, tick_s, clock=lambda: self.now, pause=self.pause)


def test_slots_that_come_back_are_waited_for() -> None:
    site = Site({"a": 0.5, "b": drain.PATIENCE_S - 0.5})
    assert site.finish()
    assert site.handed_back == []


def test_an_idle_worker_ends_at_once() -> None:
    site = Site({})
    assert site.finish()
    assert site.now == 0


def test_jobs_of_slots_that_do_not_are_handed_back() -> None:
    site = Site({"a": 0.5, "b": 1000, "c": 1000})
    assert not site.finish()
    assert site.handed_back == ["b", "c"]
    assert site.now == pytest.approx(drain.PATIENCE_S, abs=2 * drain.LOOK_S)


def test_a_step_under_way_is_waited_for() -> None:
    site = Site({"a": 30.5, "b": 1000}, tick_ends=30)
    assert not site.finish()
    assert site.handed_back == ["b"]
    assert site.now == pytest.approx(30 + drain.PATIENCE_S, abs=2 * drain.LOOK_S)


def test_a_database_that_is_away_does_not_hold_it_up_either() -> None:
    site = Site({"a": 1000, "b": 1000}, is_database_away=True)
    assert not site.finish()
