"""A short, seeded storm over the whole farm: every kind of fault once, and nothing lost. `make chaos` is the long one."""

from pathlib import Path

from tests.chaos import marked, suite
from tests.chaos.farm import Shape
from tests.chaos.nemesis import WEIGHTS, Strength
from tests.chaos.suite import Trial

LEASE_S = 3.0

SHORT = Trial(
    seed=7,
    jobs=120,
    faults=len(WEIGHTS),
    minutes=0.4,
    shape=Shape(
        workers=3,
        slots=4,
        step_s=0.02,
        settings={"FARM_LEASE_SECONDS": str(LEASE_S), "FARM_HEARTBEAT_SECONDS": "0.75", "FARM_DRAIN_SECONDS": "2"},
    ),
    strength=Strength(zombie_s=LEASE_S + 3, outage_s=2.0),
    clients=4,
)


def test_nothing_is_lost_or_doubled_whatever_dies(tmp_path: Path) -> None:
    verdict = suite.run(SHORT, tmp_path, lambda _line: None)
    assert verdict.violations == []
    assert verdict.figures["jobs"] >= SHORT.jobs
    assert verdict.figures["faults"] == SHORT.faults
    assert verdict.figures["reruns"] > 0
    assert verdict.figures["weights_shown"] >= len(marked.NAMES)
    assert verdict.figures["webhooks"]["arrived"] == verdict.figures["webhooks"]["asked"] > 0
    assert verdict.figures["webhooks"]["repeats"] > 0
