"""A sampler and a schedule have their places: "How to add" in ARCHITECTURE.md.

Beyond these, each pair of them is walked by `tests/unit/diffusion/test_plan.py`.
"""

from collections.abc import Container, Mapping

import pytest

from api.a1111 import names
from api.a1111.infotext_parser import stated
from shared.vocabulary import infotext
from shared.vocabulary.samplers import SAMPLER_LABELS, SCHEDULE_LABELS, SCHEDULES, Sampler, Schedule, unet_calls
from tests.support.factories import params
from tests.support.walking import PAIRS, sd15
from worker.diffusion import samplers

SAMPLER_PLACES: Mapping[str, Container[Sampler]] = {
    "SAMPLER_LABELS of shared/vocabulary/samplers.py": SAMPLER_LABELS,
    "the schedules it can walk, _schedules of shared/vocabulary/samplers.py": SCHEDULES,
    "diffusers' class for it, _CLASSES of worker/diffusion/samplers.py": samplers._CLASSES,
    "its names in the A1111 dialect, ALIASES of api/a1111/names.py": names.ALIASES,
}
SCHEDULE_PLACES: Mapping[str, Container[Schedule]] = {
    "SCHEDULE_LABELS of shared/vocabulary/samplers.py": SCHEDULE_LABELS,
    "its name in the A1111 dialect, SCHEDULE_NAMES of api/a1111/names.py": names.SCHEDULE_NAMES,
    "a sampler that walks it, _schedules of shared/vocabulary/samplers.py": {one for _, one in PAIRS},
}


@pytest.mark.parametrize("place", SAMPLER_PLACES)
@pytest.mark.parametrize("sampler", Sampler)
def test_every_sampler_is_in(sampler: Sampler, place: str) -> None:
    assert sampler in SAMPLER_PLACES[place], f"{sampler} lacks {place}"


@pytest.mark.parametrize("place", SCHEDULE_PLACES)
@pytest.mark.parametrize("schedule", Schedule)
def test_every_schedule_is_in(schedule: Schedule, place: str) -> None:
    assert schedule in SCHEDULE_PLACES[place], f"{schedule} lacks {place}"


@pytest.mark.parametrize("sampler", Sampler)
def test_as_many_calls_are_announced_as_are_made(sampler: Sampler) -> None:
    for schedule in SCHEDULES[sampler]:
        made = len(samplers.make(sampler, schedule, 7, sd15()).timesteps)
        announced = unet_calls(sampler, 7)
        assert made == announced, (
            f"{sampler} makes {made} calls for 7 steps: unet_calls of shared/vocabulary/samplers.py"
        )


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_the_text_of_a_picture_is_read_back(sampler: Sampler, schedule: Schedule) -> None:
    told = stated(infotext.encode(params(sampler=sampler, schedule=schedule), 0))
    read = names.walk(told["Sampler"], told["Schedule type"])
    assert (read[0], read[1] or SCHEDULES[sampler][0]) == (sampler, schedule)


def test_no_two_schedules_are_the_same_levels() -> None:
    """A schedule that worker/diffusion/samplers.py does not know would be walked as another."""
    walked: dict[tuple[float, ...], Schedule] = {}
    for schedule in SCHEDULES[Sampler.EULER]:
        levels = tuple(samplers.make(Sampler.EULER, schedule, 12, sd15()).sigmas.tolist())
        assert levels not in walked, (
            f"{schedule} is walked as {walked[levels]}: _levels, _FLAGS of worker/diffusion/samplers.py"
        )
        walked[levels] = schedule
