"""A server that is silent is asked by one caller at a time; the others are not kept waiting."""

from shared.infra.silence import RETRY_S, Silence


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_crowd_leaves_a_silent_server_to_one_caller_at_a_time() -> None:
    clock = Clock()
    silence = Silence(clock=clock)
    assert not any(silence.holds() for _ in range(3))

    silence.begin()
    assert all(silence.holds() for _ in range(3))
    clock.now += RETRY_S
    assert [silence.holds() for _ in range(3)] == [False, True, True]  # the first one tries
    silence.begin()
    clock.now += RETRY_S
    assert not silence.holds()
    silence.end()
    assert not any(silence.holds() for _ in range(3))
