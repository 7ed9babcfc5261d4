"""Who takes what: when a worker stays, to what it turns, and what it leaves to others."""

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared.vocabulary.forecast import patience_s
from worker.fleet.choice import choose, hands
from worker.fleet.members import Member
from worker.fleet.waiting import Waiting

RAM, DISK, VRAM = 0.15, 1.5, 0.003
LIBRARY = frozenset("abcdefgh")


def worker(name: str = "me", resident: str = "a", **changes: Any) -> Member:
    return dataclasses.replace(Member(name, 4, 10.0, LIBRARY, resident), **changes)


def waits(checkpoint: str, **changes: Any) -> Waiting:
    return dataclasses.replace(Waiting(checkpoint, 0, 0.0, 0.0, 20.0, 20), **changes)


def chosen(
    *waiting: Waiting,
    homes: str = "abcd",
    others: tuple[Member, ...] = (),
    price: float = RAM,
    open_now: tuple[str, ...] = ("a",),
    idle: bool = True,
    **more: Any,
) -> tuple[str, ...]:
    me = worker(resident=open_now[0] if open_now else "a")
    return choose(
        me,
        [me, *others],
        {name: ("me",) if name in homes else ("other",) for name in LIBRARY},
        waiting,
        open_now=open_now,
        price_s=lambda name: 0.0 if name == me.resident else price,
        idle=idle,
        **more,
    )


def test_it_stays_while_it_has_work_and_nobody_waits_too_long() -> None:
    assert chosen(waits("a"), waits("b", oldest_s=patience_s(RAM) - 0.1)) == ("a",)
    assert chosen(waits("a"), waits("b", oldest_s=patience_s(RAM) + 0.1)) == ("b",)
    assert patience_s(RAM) == 1.5
    assert patience_s(VRAM) == 1.0


def test_it_stays_long_enough_to_pay_for_the_swap() -> None:
    late = waits("b", oldest_s=60.0)
    assert chosen(waits("a"), late, stayed_s=patience_s(RAM) - 0.1) == ("a",)
    assert chosen(waits("a"), late, stayed_s=patience_s(RAM) + 0.1) == ("b",)


def test_without_work_it_turns_at_once_to_what_is_its_home() -> None:
    assert chosen(waits("b"), idle=True) == ("b",)
    # While something runs nothing can be swapped, and who comes to it may join.
    assert chosen(waits("b"), idle=False) == ("a",)
    assert chosen(waits("b", oldest_s=patience_s(RAM)), idle=False) == ("b",)
    assert chosen() == ("a",)
    assert chosen(open_now=()) == ("a",)


def test_of_several_it_takes_age_and_backlog_less_the_price() -> None:
    assert chosen(waits("b", oldest_s=5.0), waits("c", oldest_s=4.0)) == ("b",)
    assert chosen(waits("b", oldest_s=5.0), waits("c", oldest_s=4.0, cost=40.0)) == ("c",)
    dear = {"b": DISK, "c": RAM}
    me = worker()
    found = choose(
        me,
        [me],
        dict.fromkeys(LIBRARY, ("me",)),
        [waits("b", oldest_s=3.0), waits("c", oldest_s=2.0)],
        open_now=("a",),
        price_s=dear.__getitem__,
        idle=True,
    )
    assert found == ("c",)


def test_a_higher_priority_waits_for_no_more_than_the_price() -> None:
    assert chosen(waits("a"), waits("b", priority=1, oldest_s=RAM), stayed_s=0.0) == ("b",)
    assert chosen(waits("a", priority=1), waits("b", oldest_s=600.0)) == ("a",)
    assert chosen(waits("b", oldest_s=600.0), waits("c", priority=1)) == ("c",)


def test_now_and_then_the_longest_wait_decides_whatever_its_priority() -> None:
    low = waits("b", priority=-5, oldest_s=600.0)
    assert chosen(waits("a", priority=1), low, oldest_level=True) == ("b",)
    assert chosen(waits("c", priority=1), low, oldest_level=True) == ("b",)


def test_what_is_ahead_in_the_fair_queue_goes_before_a_flooders_backlog() -> None:
    flood = {"oldest_s": 600.0, "cost": 100.0, "jobs": 100}
    new = waits("b", cost=1.0, jobs=1)
    # Both wait elsewhere; then the flooder's is the resident one.
    assert chosen(waits("c", lag=500.0, **flood), new) == ("b",)
    assert chosen(waits("a", lag=500.0, **flood), new) == ("b",)
    # Within a batch it is the flooder's turn as much as anybody's.
    assert chosen(waits("a", lag=5.0, **flood), new) == ("a",)


def test_it_leaves_nobody_whose_turn_it_is_for_those_who_have_had_more() -> None:
    assert chosen(waits("a", cost=100.0), waits("b", lag=500.0, oldest_s=600.0)) == ("a",)


def test_what_is_far_ahead_in_the_fair_queue_is_taken_by_a_stranger_too() -> None:
    late = {"oldest_s": 60.0, "cost": 100.0}
    assert chosen(waits("b", lag=500.0, **late), waits("e", **late)) == ("e",)
    assert chosen(waits("a", lag=500.0, **late), waits("e", **late)) == ("e",)
    assert chosen(waits("b", lag=5.0, **late), waits("e", **late)) == ("b",)
    assert chosen(waits("b", lag=500.0, **late), waits("e", oldest_s=0.5)) == ("b",)


def test_while_the_farm_is_calm_age_decides_and_not_the_fair_queue() -> None:
    ahead = waits("b", lag=500.0, oldest_s=4.0, cost=20.0)
    new = waits("c", cost=1.0, jobs=1)
    assert chosen(ahead, new) == ("b",)
    # It does ten a second: what it does not do in five is a backlog, of whichever checkpoint.
    assert chosen(dataclasses.replace(ahead, cost=50.0), new) == ("c",)
    assert chosen(ahead, new, waits("a", cost=40.0, lag=500.0)) == ("c",)
    assert chosen(ahead, new, waits("a", cost=40.0, lag=500.0), others=(worker("other", resident="d"),)) == ("b",)
    # What was not counted to the end may be a backlog, once it is old.
    assert chosen(dataclasses.replace(ahead, is_all=False), new) == ("b",)
    assert chosen(dataclasses.replace(ahead, is_all=False, oldest_s=6.0), new) == ("c",)


def test_a_clock_that_runs_ahead_changes_nothing() -> None:
    ones = [waits("b", lag=500.0, oldest_s=9.0), waits("c", lag=0.0), waits("d", lag=20.0, oldest_s=3.0)]
    moved = [dataclasses.replace(one, lag=one.lag - 1e6) for one in ones]
    assert chosen(*ones) == chosen(*moved) == ("c",)


def test_what_another_serves_is_left_to_it_unless_it_is_too_much() -> None:
    other = (worker("other", resident="b"),)
    few = waits("b", cost=5.0, jobs=5)
    assert chosen(few, others=other, idle=True) == ("a",)
    assert chosen(few, others=(worker("other", resident="c", intends="b"),), idle=True) == ("a",)
    assert chosen(few, others=(worker("other", resident="b", intends="c"),), idle=True) == ("b",)
    assert chosen(dataclasses.replace(few, oldest_s=4.0), others=other, idle=True) == ("b",)
    assert chosen(waits("b", cost=50.0, jobs=50), others=other, idle=True) == ("b",)
    assert chosen(waits("b", cost=5.0, jobs=5, is_all=False), others=other, idle=True) == ("b",)


@given(st.floats(0, 1e6), st.floats(0, 1e4), st.floats(0.1, 1e5), st.floats(0, 10))
def test_one_hand_for_what_one_can_serve(cost: float, oldest_s: float, speed: float, price: float) -> None:
    one = waits("b", cost=cost, oldest_s=oldest_s)
    found = hands(one, speed=speed, price_s=price)
    assert found >= 1
    assert found >= cost / (speed * patience_s(price))
    if cost <= speed * patience_s(price):
        assert found <= 2


def test_an_idle_stranger_takes_what_waits_too_long() -> None:
    assert chosen(waits("e", oldest_s=5.9), idle=True, price=DISK) == ("a",)
    assert chosen(waits("e", oldest_s=6.1), idle=True, price=DISK) == ("e",)
    assert chosen(waits("e", oldest_s=6.1), idle=False, price=DISK) == ("a",)
    assert chosen(waits("e", oldest_s=60.0), waits("b"), idle=True, price=DISK) == ("b",)


def test_what_it_cannot_load_does_not_count() -> None:
    assert chosen(waits("z", oldest_s=600.0, priority=9), idle=True) == ("a",)


def test_checkpoints_that_are_near_alternate_while_little_waits() -> None:
    few = {"cost": 1.0, "jobs": 1}
    assert chosen(waits("b", **few), price=VRAM) == ("b", "a")
    assert chosen(waits("c", **few), price=VRAM, open_now=("b", "a")) == ("c", "b", "a")
    assert chosen(waits("d", **few), price=VRAM, open_now=("c", "b", "a")) == ("d", "c", "b")
    assert chosen(price=VRAM, open_now=("c", "b", "a")) == ("c", "b", "a")
    assert chosen(waits("b", **few), price=RAM) == ("b",)


def test_under_load_one_is_open() -> None:
    assert chosen(waits("b"), waits("c"), price=VRAM, open_now=("b", "a")) == ("b",)
    assert len(chosen(waits("b", oldest_s=5), waits("c"), price=VRAM)) == 1


names = st.sampled_from("abcdefghz")
figures = st.builds(
    Waiting,
    names,
    st.integers(-5, 5),
    st.floats(-1e9, 1e9),
    st.floats(0, 1e6),
    st.floats(0, 1e9),
    st.integers(1, 100),
    st.booleans(),
)
members = st.builds(
    Member,
    st.sampled_from(["w1", "w2", "w3"]),
    st.integers(1, 24),
    st.none() | st.floats(0.001, 1e6),
    st.frozensets(names, min_size=1),
    names,
    st.none() | names,
)


@given(
    members,
    st.lists(members, max_size=4),
    st.lists(figures, max_size=9, unique_by=lambda one: one.checkpoint),
    st.dictionaries(names, st.sets(st.sampled_from(["me", "w1"]))),
    st.lists(names, max_size=3, unique=True),
    st.sampled_from([0.0, VRAM, RAM, DISK, 30.0]),
    st.booleans(),
    st.booleans(),
    st.floats(0, 100),
)
def test_any_choice_is_loadable_few_and_final(
    me: Member,
    others: list[Member],
    waiting: list[Waiting],
    homes: dict[str, set[str]],
    opened: list[str],
    price: float,
    idle: bool,
    oldest_level: bool,
    stayed_s: float,
) -> None:
    me = dataclasses.replace(me, id="me")
    open_now = tuple(name for name in opened if name in me.library)

    def once(order: list[Waiting], now: tuple[str, ...]) -> tuple[str, ...]:
        return choose(
            me,
            [*others, me],
            homes,
            order,
            open_now=now,
            price_s=lambda _: price,
            idle=idle,
            stayed_s=stayed_s,
            oldest_level=oldest_level,
        )

    found = once(waiting, open_now)
    assert 1 <= len(found) <= 3
    assert len(set(found)) == len(found)
    assert set(found) <= {*open_now, me.resident, *me.library}
    # The order in which the figures come means nothing.
    assert once(waiting[::-1], open_now) == found
    # Idle with work at home that nobody else serves, it never stays without any.
    its_own = {
        one.checkpoint
        for one in waiting
        if one.checkpoint in me.library
        and "me" in homes.get(one.checkpoint, ())
        and not any(one.checkpoint == (other.intends or other.resident) for other in others)
    }
    if its_own:
        assert set(found) & {one.checkpoint for one in waiting}
