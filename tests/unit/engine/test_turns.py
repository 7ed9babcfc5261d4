"""Turns of checkpoints: nobody starves, swaps are charged, and how long one stays follows from their price."""

from collections import defaultdict
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.turns import STAY, Turns

TICK_S = 0.02
prices = st.floats(0.0, 2.0)


def played(price_s: dict[str, float], ticks: int) -> list[str]:
    """Who has each tick, while all have work."""
    turns = Turns(price_s.__getitem__)
    chosen = []
    for _ in range(ticks):
        one = turns.choose(price_s)
        assert one is not None
        chosen.append(one)
        turns.spent(TICK_S)
    return chosen


def stays(chosen: list[str]) -> list[float]:
    """How many seconds each turn lasts, without the first and the one that is not over."""
    return [len(list(ticks)) * TICK_S for _, ticks in groupby(chosen)][1:-1]


def test_cheap_swaps_alternate_by_tick() -> None:
    assert max(stays(played(dict.fromkeys("abc", 0.001), 300))) <= 2 * TICK_S


@pytest.mark.parametrize("price_s", [0.1, 0.5, 2.0])
def test_one_stays_for_several_prices_where_a_swap_is_dear(price_s: float) -> None:
    lasting = stays(played(dict.fromkeys("ab", price_s), 5000))
    assert min(lasting) >= STAY * price_s - TICK_S
    assert max(lasting) <= 2 * STAY * price_s + 2 * TICK_S


@given(st.dictionaries(st.sampled_from("abcdef"), prices, min_size=2))
def test_whoever_has_work_waits_no_longer_than_the_others_prices_say(price_s: dict[str, float]) -> None:
    turns = Turns(price_s.__getitem__)
    now, last = 0.0, dict.fromkeys(price_s, 0.0)
    # Each of the others gets ahead by so much at most, and is charged for coming.
    bound_s = len(price_s) * (2 * (STAY + 1) * max(price_s.values()) + 2 * TICK_S)
    before = None
    while now < 3 * bound_s + 1:
        one = turns.choose(price_s)
        assert one is not None
        now += price_s[one] if one != before else 0.0
        before = one
        turns.spent(TICK_S)
        now += TICK_S
        last[one] = now
        assert now - min(last.values()) <= bound_s


@given(st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_a_swap_is_charged_to_the_one_that_it_leads_to(first_s: float, second_s: float) -> None:
    """Time for work and for swaps together is shared evenly, up to one stay."""
    price_s = {"a": first_s, "b": second_s}
    took: dict[str, float] = defaultdict(float)
    before = None
    for one in played(price_s, 6000):
        took[one] += TICK_S + (price_s[one] if one != before else 0.0)
        before = one
    assert abs(took["a"] - took["b"]) <= (STAY + 2) * max(price_s.values()) + 2 * TICK_S


def test_absence_saves_up_nothing() -> None:
    turns: Turns[str] = Turns(lambda _: 0.0)
    for _ in range(100):
        turns.choose(["a"])
        turns.spent(TICK_S)
    taken = []
    for _ in range(10):
        taken.append(turns.choose(["a", "b"]))
        turns.spent(TICK_S)
    assert taken.count("a") == taken.count("b") == 5


def test_who_has_no_work_has_no_turn() -> None:
    turns: Turns[str] = Turns(lambda _: 5.0)
    assert turns.choose([]) is None
    assert turns.choose(["a"]) == "a"
    assert turns.choose(["b"]) == "b"
    assert turns.choose(["a", "b"]) == "b"
