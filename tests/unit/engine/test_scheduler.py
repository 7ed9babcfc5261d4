"""The batch scheduler's promises, for any mix of requests."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.ceiling import Ceiling
from worker.engine.scheduler import BatchScheduler

MAX_SAMPLES = 8
ARRIVALS = st.lists(
    st.tuples(st.sampled_from(["64", "96", "128"]), st.sampled_from([1, 2]), st.integers(1, 6)), min_size=1, max_size=30
)
COST = {"64": 1.0, "96": 2.3, "128": 4.0}


def filled(arrivals: list[tuple[str, int, int]]) -> tuple[BatchScheduler[int], dict[int, int]]:
    scheduler: BatchScheduler[int] = BatchScheduler(Ceiling(MAX_SAMPLES))
    for request, (bucket, samples, _) in enumerate(arrivals):
        scheduler.add(request, bucket, samples=samples, cost=COST[bucket] * samples)
    return scheduler, {request: steps for request, (_, _, steps) in enumerate(arrivals)}


@given(ARRIVALS)
def test_a_batch_is_pure_and_fits(arrivals: list[tuple[str, int, int]]) -> None:
    scheduler, _ = filled(arrivals)
    for _ in range(10):
        batch = scheduler.schedule()
        assert batch
        assert len({arrivals[request][0] for request in batch}) == 1
        assert len(batch) == len(set(batch))
        assert sum(arrivals[request][1] for request in batch) <= MAX_SAMPLES


@given(ARRIVALS)
def test_everything_finishes_and_within_a_bucket_in_order(arrivals: list[tuple[str, int, int]]) -> None:
    scheduler, left = filled(arrivals)
    begun: dict[str, list[int]] = {}
    ticks = 0
    while len(scheduler):
        for request in scheduler.schedule():
            order = begun.setdefault(arrivals[request][0], [])
            if request not in order:
                order.append(request)
            left[request] -= 1
            if left[request] == 0:
                scheduler.remove(request)
        ticks += 1
        assert ticks <= sum(steps for *_, steps in arrivals)  # no tick is wasted
    assert all(order == sorted(order) for order in begun.values())


@given(st.integers(1, 40))
def test_no_bucket_waits_for_more_than_its_fair_share(others: int) -> None:
    """A lone small image among a flood of large ones gets service in proportion, whatever the flood's size."""
    scheduler: BatchScheduler[int] = BatchScheduler(Ceiling(MAX_SAMPLES))
    for request in range(others):
        scheduler.add(request, "128", samples=2, cost=8.0)
    scheduler.add(99, "64", samples=2, cost=2.0)
    waits = [99 not in scheduler.schedule() for _ in range(40)]
    longest = max(len(run) for run in "".join("w" if wait else "s" for wait in waits).split("s"))
    assert longest <= 1


def test_a_newcomer_starts_level_with_the_rest() -> None:
    scheduler: BatchScheduler[str] = BatchScheduler(Ceiling(MAX_SAMPLES))
    scheduler.add("old", "64", samples=2, cost=1.0)
    for _ in range(100):
        scheduler.schedule()
    scheduler.add("new", "96", samples=2, cost=1.0)
    assert {tuple(scheduler.schedule()) for _ in range(2)} == {("old",), ("new",)}


def test_memory_shrinks_the_limit_of_one_bucket_only() -> None:
    scheduler: BatchScheduler[int] = BatchScheduler(Ceiling(MAX_SAMPLES))
    for request in range(4):
        scheduler.add(request, "64", samples=2, cost=1.0)
    assert scheduler.shrink(scheduler.schedule())
    assert len(scheduler.schedule()) == 2
    assert scheduler.shrink([0, 1])
    assert scheduler.schedule() == [0]
    assert not scheduler.shrink([0])
    for request in range(10, 14):
        scheduler.add(request, "96", samples=2, cost=0.1)
    assert max(len(scheduler.schedule()) for _ in range(3)) == 4


def test_an_image_larger_than_the_limit_still_runs() -> None:
    scheduler: BatchScheduler[int] = BatchScheduler(Ceiling(1))
    scheduler.add(1, "64", samples=2, cost=1.0)
    assert scheduler.schedule() == [1]


def test_nothing_scheduled_nothing_chosen() -> None:
    scheduler: BatchScheduler[int] = BatchScheduler(Ceiling(4))
    assert scheduler.schedule() == []
