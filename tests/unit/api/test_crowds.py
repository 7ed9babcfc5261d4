"""Crowds: who is one, beside whom their work rests, and for how long."""

import pytest

from api.limits import crowds as module
from api.limits.contention import BEARABLE, Contention, run_and_waited
from api.limits.crowds import CROWD, LINGER_S, REST, REST_IN_CONTENTION, Crowds
from api.limits.owners import ANONYMOUS

WORK_S = 0.5


class Clock:
    """Time of the tests, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def come(crowds: Crowds, owner: str, requests: int) -> None:
    for _ in range(requests):
        crowds.enter(owner)


def test_a_crowds_work_rests_beside_one_with_few_requests(clock: Clock) -> None:
    assert clock
    crowds = Crowds()
    come(crowds, "ada", CROWD)
    assert crowds.rest_s("ada", WORK_S) == 0
    come(crowds, "bob", CROWD - 1)
    assert crowds.rest_s("ada", WORK_S) == REST * WORK_S
    assert crowds.rest_s("bob", WORK_S) == 0


def test_crowds_do_not_rest_for_each_other(clock: Clock) -> None:
    assert clock
    crowds = Crowds()
    come(crowds, "ada", CROWD)
    come(crowds, "bob", CROWD)
    assert crowds.rest_s("ada", WORK_S) == crowds.rest_s("bob", WORK_S) == 0


def test_nobody_rests_for_those_without_a_key(clock: Clock) -> None:
    assert clock
    crowds = Crowds()
    come(crowds, "ada", CROWD)
    come(crowds, ANONYMOUS, 1)
    assert crowds.rest_s("ada", WORK_S) == 0


def test_who_has_not_come_for_a_while_is_forgotten(clock: Clock) -> None:
    crowds = Crowds()
    come(crowds, "bob", 1)
    crowds.leave("bob")
    clock.now += LINGER_S / 2
    come(crowds, "ada", CROWD)
    assert crowds.rest_s("ada", WORK_S)
    clock.now += LINGER_S / 2 + 0.01
    come(crowds, "ada", 1)
    assert crowds.rest_s("ada", WORK_S) == 0


def test_nobody_rests_for_who_has_gone_though_no_other_request_comes(clock: Clock) -> None:
    crowds = Crowds()
    come(crowds, "ada", CROWD)
    come(crowds, "bob", 1)
    assert crowds.rest_s("ada", WORK_S)
    clock.now += LINGER_S + 0.01
    assert crowds.rest_s("ada", WORK_S) == 0


def test_a_crowd_stays_one_for_a_moment_and_while_its_requests_wait(clock: Clock) -> None:
    crowds = Crowds()
    come(crowds, "ada", CROWD)
    clock.now += LINGER_S + 0.01
    come(crowds, "bob", 1)
    assert crowds.is_crowd("ada")  # all under way
    for _ in range(CROWD - 1):
        crowds.leave("ada")
    assert not crowds.is_crowd("ada")
    come(crowds, "ada", CROWD - 1)
    for _ in range(CROWD):
        crowds.leave("ada")
    assert crowds.is_crowd("ada")
    come(crowds, "ada", 1)  # one at a time, but just after
    assert not crowds.rest_s("bob", WORK_S)
    clock.now += LINGER_S + 0.01
    come(crowds, "ada", 1)
    assert not crowds.is_crowd("ada")


def test_the_rest_is_longer_while_processors_are_short(clock: Clock) -> None:
    assert clock
    figures = iter([(100, 0), (200, int(100 * BEARABLE) + 1), (300, int(100 * BEARABLE) + 1)])
    contention = Contention(lambda: next(figures))
    crowds = Crowds(contention)
    come(crowds, "ada", CROWD)
    come(crowds, "bob", 1)
    rests = []
    for _ in range(3):
        contention._looked_s = 0.0
        crowds.look()
        rests.append(crowds.rest_s("ada", WORK_S))
    assert rests == [REST * WORK_S, REST_IN_CONTENTION * WORK_S, REST * WORK_S]


def test_a_look_soon_after_another_asks_nobody() -> None:
    figures = iter([(100, 0)])
    contention = Contention(lambda: next(figures))
    contention.look()
    contention.look()
    assert not list(figures)


def test_the_kernel_tells_how_long_a_thread_ran() -> None:
    ran, waited = run_and_waited()
    sum(range(300_000))
    later = run_and_waited()
    assert later[0] > ran > 0
    assert later[1] >= waited >= 0
