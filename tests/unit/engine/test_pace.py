import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.pace import MEMORY_TICKS, Pace

TICKS = st.lists(
    st.tuples(st.floats(0.001, 10), st.floats(1, 1e6), st.integers(1, 16)), min_size=1, max_size=MEMORY_TICKS
)


@given(ticks=TICKS)
def test_a_young_pace_is_the_mean_of_its_ticks(ticks: list[tuple[float, float, int]]) -> None:
    pace = Pace()
    for tick_s, cost, images in ticks:
        pace = pace.after(tick_s, cost=cost, images=images)
    busy_s = sum(tick_s for tick_s, _, _ in ticks)
    assert pace.ticks == len(ticks)
    assert pace.busy_s == pytest.approx(busy_s)
    assert pace.tick_s == pytest.approx(busy_s / len(ticks))
    assert pace.speed == pytest.approx(sum(cost for _, cost, _ in ticks) / busy_s)
    assert pace.batch_fill == pytest.approx(sum(images for _, _, images in ticks) / len(ticks))


def test_an_old_pace_follows_a_change_of_load() -> None:
    pace = Pace()
    for _ in range(10 * MEMORY_TICKS):
        pace = pace.after(1.0, cost=100, images=1)
    for _ in range(5 * MEMORY_TICKS):
        pace = pace.after(0.5, cost=400, images=8)
    assert pace.speed == pytest.approx(800, rel=0.02)
    assert pace.batch_fill == pytest.approx(8, rel=0.02)
