"""The engine's loop on a toy device: exact arithmetic instead of a UNet, and faults on demand."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from queue import SimpleQueue
from threading import Event, Thread, current_thread
from typing import Any

import numpy as np
import pytest

from shared.errors import Canceled, EngineStopped, NotANumber, OutOfMemory, RenderFailed
from tests.support.ceiling import Ceiling
from tests.support.waiting import LIMIT_S
from worker.engine.engine import Engine, run_alone
from worker.engine.preparation import PendingFuture, Preparation, PreparationSteps
from worker.engine.request import Pixels, Request
from worker.engine.snapshot import Snapshot


@dataclass(frozen=True)
class Spec:
    """A toy image: `passes` walks of `steps` steps at widths that double, each after a way with so many `stops`."""

    prompt: str = "p"
    steps: int = 5
    samples: int = 2
    width: int = 64
    seed: int = 1
    passes: int = 1
    stops: int = 1
    checkpoint: str = "a"


SPEC: Any = Spec()


@dataclass(eq=False)
class Toy:
    """A number that each step changes; its history depends on nothing but its own spec."""

    spec: Spec
    value: int
    steps_done: int = 0
    passes_begun: int = 1
    sha256s: Mapping[str, str | None] = field(default_factory=dict)
    weights: str = "toy"

    @property
    def steps_total(self) -> int:
        return self.spec.steps * self.spec.passes

    @property
    def checkpoint(self) -> str:
        return self.spec.checkpoint

    @property
    def bucket(self) -> int:
        if self.spec.prompt == "homeless":
            raise ValueError("fits nowhere")
        return self.spec.width * self.passes_begun

    @property
    def samples(self) -> int:
        return self.spec.samples

    @property
    def cost(self) -> float:
        return float(self.samples)

    @property
    def is_pass_over(self) -> bool:
        return self.steps_done >= self.spec.steps * self.passes_begun

    @property
    def is_over(self) -> bool:
        return self.steps_done >= self.steps_total

    def snapshot(self) -> Snapshot:
        return Snapshot(self.passes_begun - 1, 0, self.steps_done, {"value": np.float32(self.value)})


class Film:
    """Pixels that a slow device has not finished; the engine learns so by looking."""

    def __init__(self, device: "ToyDevice", toy: Toy) -> None:
        self._device = device
        self._toy = toy

    @property
    def is_ready(self) -> bool:
        if self._toy.spec.prompt == "lost":
            raise ValueError("the device is gone")
        return self._device.is_fast

    def pixels(self) -> Pixels:
        self._device.developed.append(self._toy.spec.seed)
        if self._toy.spec.prompt == "not a number":
            raise NotANumber
        return np.full((8, 8, 3), self._toy.value, dtype=np.uint8)


class ToyDevice:
    """Counts its calls; `before_call` may raise or wait."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.developed: list[int] = []
        self.launched: list[int] = []
        self.drafted_by: set[str] = set()
        self.is_fast = True
        self.has_encoded = True
        self.waits = 0
        self.resident: Hashable = None
        self.turns: list[Hashable] = []
        self.prices: dict[Hashable, float] = {}
        self.unreadable: set[Hashable] = set()
        self.damaged: dict[Hashable, PendingFuture] = {}
        self.before_call: Callable[[Sequence[Toy]], None] = lambda _batch: None
        self.before_wait: Callable[[], None] = lambda: None

    def price_s(self, checkpoint: Hashable) -> float:
        return self.prices.get(checkpoint, 0.0)

    def turn_to(self, checkpoint: Hashable) -> Any:
        self.turns.append(checkpoint)
        if checkpoint in self.unreadable:
            raise RenderFailed("it cannot be read again")
        if checkpoint in self.damaged:
            self.resident = None
            return self.damaged.pop(checkpoint)
        self.resident = checkpoint
        return None

    def draft(self, spec: Any) -> Toy:
        self.drafted_by.add(current_thread().name)
        if spec.prompt == "unreadable":
            raise ValueError("cannot be read")
        return Toy(spec, spec.seed)

    def prepare(self, draft: Toy, snapshot: Snapshot | None = None) -> Preparation[Toy]:
        return Preparation(self._way(draft, partial(self._begun, draft, snapshot)), draft.checkpoint)

    def _way(self, image: Toy, act: Callable[[], Toy]) -> PreparationSteps[Toy]:
        for _ in range(image.spec.stops):
            self.launched.append(image.spec.seed)
            yield self
        return act()

    @property
    def is_ready(self) -> bool:
        return self.has_encoded

    def wait(self) -> None:
        self.waits += not self.has_encoded
        self.before_wait()

    def _begun(self, draft: Toy, snapshot: Snapshot | None) -> Toy:
        if snapshot:
            draft.value, draft.steps_done = int(snapshot.latents["value"]), snapshot.steps_done
            draft.passes_begun = snapshot.pass_index + 1
        if draft.spec.prompt == "poison":
            raise ValueError("cannot be prepared")
        return draft

    def denoise(self, batch: Sequence[Toy]) -> None:
        self.before_call(batch)
        assert len({toy.bucket for toy in batch}) == 1
        assert {toy.checkpoint for toy in batch} == {self.resident}
        assert not any(toy.is_pass_over for toy in batch)
        self.batches.append([toy.spec.seed for toy in batch])
        for toy in batch:
            toy.value = (toy.value * 31 + toy.steps_done) % 251
            toy.steps_done += 1

    def prepare_next_pass(self, image: Toy) -> Preparation[Toy]:
        return Preparation(self._way(image, partial(self._turned, image)), image.checkpoint)

    def _turned(self, image: Toy) -> Toy:
        if image.spec.prompt == "unturnable":
            raise RenderFailed("too large")
        image.passes_begun += 1
        return image

    def preview(self, image: Toy) -> Film:
        if image.spec.prompt == "unshowable":
            raise OutOfMemory
        return Film(self, image)

    def decode(self, image: Toy) -> Film:
        if image.spec.prompt == "undecodable":
            raise RenderFailed("no memory to decode")
        return Film(self, image)


@pytest.fixture
def device() -> ToyDevice:
    return ToyDevice()


@pytest.fixture
def engine(device: ToyDevice) -> Iterator[Engine[Toy, Toy]]:
    engine = Engine(device, limits=Ceiling(8))
    yield engine
    engine.stop()


def test_ragged_requests_in_one_batch_equal_each_alone(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    specs = [replace(SPEC, seed=seed, steps=steps) for seed, steps in enumerate([3, 9, 1, 5, 7, 2])]
    specs += [replace(SPEC, seed=50, width=128), replace(SPEC, seed=51, samples=1)]
    requests = [engine.submit(spec) for spec in specs]
    engine.start()
    for request, spec in zip(requests, specs, strict=True):
        assert (request.result(LIMIT_S) == run_alone(ToyDevice(), spec)).all()
        assert request.steps_done == spec.steps
    assert max(len(batch) for batch in device.batches) >= 4


def test_a_latecomer_joins_the_running_batch(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    joined: SimpleQueue[Request] = SimpleQueue()

    def submit_another(_batch: Sequence[Toy]) -> None:
        if len(device.batches) == 2:
            joined.put(engine.submit(replace(SPEC, seed=2)))

    device.before_call = submit_another
    engine.submit(replace(SPEC, seed=1, steps=6))
    engine.start()
    joined.get(timeout=LIMIT_S).result(LIMIT_S)
    assert [1, 2] in device.batches


def test_a_canceled_request_makes_no_further_step(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    device.before_call = lambda _batch: long.cancel() if len(device.batches) == 3 else None
    long = engine.submit(replace(SPEC, steps=100))
    engine.start()
    with pytest.raises(Canceled):
        long.result(LIMIT_S)
    assert long.steps_done == 4  # the step that was under way, and none after it


def test_a_request_canceled_in_its_last_step_gives_no_picture(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    device.before_call = lambda _batch: late.cancel() if len(device.batches) == SPEC.steps - 1 else None
    late = engine.submit(SPEC)
    engine.start()
    with pytest.raises(Canceled):
        late.result(LIMIT_S)
    assert late.steps_done == late.steps_total == SPEC.steps


def test_a_request_canceled_before_it_began(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    request = engine.submit(SPEC)
    request.cancel()
    engine.start()
    with pytest.raises(Canceled):
        request.result(LIMIT_S)
    assert device.batches == []


@pytest.mark.parametrize("prompt", ["unreadable", "poison", "homeless", "undecodable", "lost", "not a number"])
def test_a_bad_request_fails_alone(engine: Engine[Toy, Toy], prompt: str) -> None:
    good, bad = engine.submit(SPEC), engine.submit(replace(SPEC, prompt=prompt))
    engine.start()
    with pytest.raises(RenderFailed):
        bad.result(LIMIT_S)
    assert good.result(LIMIT_S) is not None


def test_out_of_memory_halves_the_batch_and_fails_nobody(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    def only_two_fit(batch: Sequence[Toy]) -> None:
        if len(batch) > 2:
            raise OutOfMemory

    device.before_call = only_two_fit
    requests = [engine.submit(replace(SPEC, seed=seed)) for seed in range(4)]
    engine.start()
    for request in requests:
        assert (request.result(LIMIT_S) == run_alone(ToyDevice(), request.spec)).all()
    assert max(len(batch) for batch in device.batches) == 2


def test_a_request_that_does_not_fit_alone_is_told_so(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    def small_only(batch: Sequence[Toy]) -> None:
        if any(toy.spec.width > 64 for toy in batch):
            raise OutOfMemory

    device.before_call = small_only
    small, large = engine.submit(SPEC), engine.submit(replace(SPEC, width=1024))
    engine.start()
    with pytest.raises(OutOfMemory):
        large.result(LIMIT_S)
    assert small.result(LIMIT_S) is not None


def test_a_broken_call_fails_its_batch_and_the_engine_lives_on(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    def break_once(_batch: Sequence[Toy]) -> None:
        device.before_call = lambda _batch: None
        raise ZeroDivisionError

    device.before_call = break_once
    broken = engine.submit(SPEC)
    engine.start()
    with pytest.raises(RenderFailed, match="ZeroDivisionError"):
        broken.result(LIMIT_S)
    assert engine.submit(SPEC).result(LIMIT_S) is not None


def test_stopping_fails_what_is_in_flight(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    running = engine.submit(SPEC)
    with stopped_in_a_call(engine, device):
        waiting = engine.submit(SPEC)
    for request in (running, waiting):
        with pytest.raises(EngineStopped):
            request.result(LIMIT_S)
    assert len(device.batches) == 1
    assert not engine.is_alive
    assert engine.seconds_stuck == 0.0


def test_stopping_fails_who_is_on_the_way(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    device.has_encoded = False
    requests = [engine.submit(replace(SPEC, seed=seed)) for seed in (1, 2)]
    with stopped_in_a_call(engine, device):
        pass
    assert device.batches == [[1]]
    for request in requests:
        with pytest.raises(EngineStopped):
            request.result(LIMIT_S)


@contextmanager
def stopped_in_a_call(engine: Engine[Toy, Toy], device: ToyDevice) -> Iterator[None]:
    """Start an engine, and stop it while its first call is under way and the block is done."""
    under_way, go_on = Event(), Event()

    def wait(_batch: Sequence[Toy]) -> None:
        under_way.set()
        assert go_on.wait(LIMIT_S)

    device.before_call = wait
    engine.start()
    assert under_way.wait(LIMIT_S)
    yield
    stopping = Thread(target=engine.stop)
    stopping.start()
    with pytest.raises(EngineStopped):
        submit_until_refused(engine)  # the stop closes the door before it waits for the tick under way
    go_on.set()
    stopping.join(LIMIT_S)


def submit_until_refused(engine: Engine[Toy, Toy]) -> None:
    while True:
        engine.submit(SPEC)


def test_a_tick_that_hangs_shows(device: ToyDevice) -> None:
    under_way, go_on, now = Event(), Event(), 10.0

    def hang(_batch: Sequence[Toy]) -> None:
        under_way.set()
        assert go_on.wait(LIMIT_S)

    device.before_call = hang
    engine = Engine(device, limits=Ceiling(8), clock=lambda: now)
    request = engine.submit(SPEC)
    engine.start()
    assert under_way.wait(LIMIT_S)
    now = 13.0
    assert engine.seconds_stuck == 3.0
    go_on.set()
    assert request.result(LIMIT_S) is not None
    engine.stop()
    assert engine.seconds_stuck == 0.0


def test_a_tick_that_gets_on_does_not_hang(device: ToyDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures that are decoded in one tick, for a minute each."""
    now, silences, decode = [10.0], list[float](), device.decode

    def decode_slowly(image: Toy) -> Film:
        silences.append(slow.seconds_stuck)
        now[0] += 60
        return decode(image)

    monkeypatch.setattr(device, "decode", decode_slowly)
    slow = Engine(device, limits=Ceiling(8), clock=lambda: now[0])
    requests = [slow.submit(replace(SPEC, seed=seed)) for seed in range(3)]
    slow.start()
    for request in requests:
        assert request.result(LIMIT_S) is not None
    slow.stop()
    assert silences == [0.0] * 3


def test_stopping_before_the_start_leaves_nobody_waiting(engine: Engine[Toy, Toy]) -> None:
    request = engine.submit(SPEC)
    assert request.steps_total == SPEC.steps
    engine.stop()
    with pytest.raises(EngineStopped):
        request.result(LIMIT_S)


def test_an_engine_without_work_is_alive_and_silent_for_no_time(engine: Engine[Toy, Toy]) -> None:
    assert not engine.is_alive
    engine.start()
    assert engine.submit(SPEC).result(LIMIT_S) is not None
    assert engine.is_alive


def test_a_second_pass_goes_on_in_another_bucket(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    """Two passes of 5 steps each at another width, beside an image that stays where the first pass was."""
    two = replace(SPEC, seed=1, passes=2)
    turned, stays = engine.submit(two), engine.submit(replace(SPEC, seed=2, steps=7))
    engine.start()
    assert (turned.result(LIMIT_S) == run_alone(ToyDevice(), two)).all()
    assert stays.result(LIMIT_S) is not None
    assert (turned.steps_done, turned.steps_total) == (10, 10)
    assert device.batches[:5] == [[1, 2]] * 5
    assert all(len(batch) == 1 for batch in device.batches[5:])


def test_a_pass_that_cannot_begin_fails_alone(engine: Engine[Toy, Toy]) -> None:
    bad, good = engine.submit(replace(SPEC, prompt="unturnable", passes=2)), engine.submit(SPEC)
    engine.start()
    with pytest.raises(RenderFailed, match="too large"):
        bad.result(LIMIT_S)
    assert good.result(LIMIT_S) is not None


def test_others_go_on_while_the_device_develops(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    """A picture that is not ready holds nobody up; it is waited for only when nothing else is to be done."""
    device.is_fast = False
    first, second = engine.submit(replace(SPEC, seed=1, steps=2)), engine.submit(replace(SPEC, seed=2, steps=6))
    developed_by_then: list[list[int]] = []
    device.before_call = lambda _batch: developed_by_then.append(list(device.developed))
    engine.start()
    assert first.result(LIMIT_S) is not None
    assert second.result(LIMIT_S) is not None
    assert developed_by_then == [[]] * 6
    assert device.developed == [1, 2]


def test_others_go_on_while_the_device_encodes(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    """Who is on the way to its first step holds nobody up, nor who is on the way to that of its next pass."""
    device.has_encoded = False

    def encode_from_time_to_time(_batch: Sequence[Toy]) -> None:
        device.has_encoded = len(device.batches) in {2, 9}

    device.before_call = encode_from_time_to_time
    # Nobody else is there when the first one comes: it is waited for.
    long, short = (
        engine.submit(replace(SPEC, seed=1, steps=12)),
        engine.submit(replace(SPEC, seed=2, steps=3, passes=2)),
    )
    engine.start()
    assert long.result(LIMIT_S) is not None
    assert (short.result(LIMIT_S) == run_alone(ToyDevice(), short.spec)).all()
    assert device.waits == 1
    assert device.batches == [[1]] * 3 + [[1, 2]] * 3 + [[1]] * 4 + [[1], [2]] * 2 + [[2]]


def test_a_request_canceled_on_its_way_never_arrives(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    device.has_encoded = False
    stays = engine.submit(replace(SPEC, seed=1, steps=3))
    leaves = engine.submit(replace(SPEC, seed=2))
    device.before_call = lambda _batch: leaves.cancel()
    engine.start()
    assert stays.result(LIMIT_S) is not None
    with pytest.raises(Canceled):
        leaves.result(LIMIT_S)
    assert device.batches == [[1]] * 3


def test_an_arrival_is_awaited_from_stop_to_stop(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    """So whoever comes meanwhile, and has no way to go, need not wait for all of it; and all are led before one is awaited."""
    device.has_encoded = False
    slow = [engine.submit(replace(SPEC, seed=seed, steps=2, stops=3)) for seed in (1, 2)]

    def submit_another() -> None:
        device.before_wait = lambda: None
        assert device.launched == [1, 2]
        slow.append(engine.submit(replace(SPEC, seed=3, stops=0)))

    device.before_wait = submit_another
    engine.start()
    for request in slow:
        assert (request.result(LIMIT_S) == run_alone(ToyDevice(), request.spec)).all()
    assert device.batches[:5] == [[3]] * 5


def test_a_request_canceled_while_it_is_awaited_makes_no_step(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    device.has_encoded = False
    request = engine.submit(SPEC)
    device.before_wait = request.cancel
    engine.start()
    with pytest.raises(Canceled):
        request.result(LIMIT_S)
    assert device.batches == []


def test_who_is_canceled_behind_its_last_step_is_in_no_batch_again(
    engine: Engine[Toy, Toy], device: ToyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more step of a walk that is over fails, and with it everybody's who shares the call."""
    begun = device._begun

    def begin_and_cancel(draft: Toy, snapshot: Snapshot | None) -> Toy:
        if snapshot:
            late.cancel()
        return begun(draft, snapshot)

    monkeypatch.setattr(device, "_begun", begin_and_cancel)
    late = engine.submit(SPEC, Snapshot(0, SPEC.steps, SPEC.steps, {"value": np.float32(1)}))
    good = engine.submit(SPEC)
    engine.start()
    assert good.result(LIMIT_S) is not None
    with pytest.raises(Canceled):
        late.result(LIMIT_S)


def test_a_device_that_breaks_while_it_is_awaited_fails_the_request(
    engine: Engine[Toy, Toy], device: ToyDevice
) -> None:
    device.has_encoded = False

    def break_once() -> None:
        device.has_encoded = True
        raise ValueError("the device is gone")

    device.before_wait = break_once
    request = engine.submit(SPEC)
    engine.start()
    with pytest.raises(RenderFailed, match="ValueError"):
        request.result(LIMIT_S)
    assert engine.submit(SPEC).result(LIMIT_S) is not None


def test_images_are_made_ready_by_whoever_submits_them(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    engine.start()
    engine.submit(SPEC).result(LIMIT_S)
    assert device.drafted_by == {current_thread().name}


def test_previews_are_made_when_asked_for(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    request = engine.submit(replace(SPEC, steps=4))
    shown: list[Any] = []
    device.before_call = lambda _batch: shown.append(request.take_preview())
    engine.start()
    assert request.result(LIMIT_S) is not None
    assert shown[0] is None  # nothing had been made yet
    assert all(preview is not None for preview in shown[1:])


def test_a_preview_that_fails_costs_no_image(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    request = engine.submit(replace(SPEC, prompt="unshowable"))
    shown: list[Any] = []
    device.before_call = lambda _batch: shown.append(request.take_preview())
    engine.start()
    assert request.result(LIMIT_S) is not None
    assert shown == [None] * SPEC.steps


def test_a_preview_that_is_not_ready_is_not_waited_for(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    device.is_fast = False
    request = engine.submit(SPEC)
    shown: list[Any] = []
    device.before_call = lambda _batch: shown.append(request.take_preview())
    engine.start()
    assert request.result(LIMIT_S) is not None
    assert shown == [None] * SPEC.steps


def in_turns(engine: Engine[Toy, Toy], **of_second: Any) -> list[Request]:
    """Images of two checkpoints, two each, until all are done."""
    specs = [SPEC, replace(SPEC, checkpoint="b", **of_second)]
    requests = [engine.submit(replace(spec, seed=seed)) for seed in (1, 2) for spec in specs]
    while not all(request.is_done for request in requests):
        engine.tick()
    return requests


def test_checkpoints_take_turns_by_what_a_turn_costs(device: ToyDevice) -> None:
    """One that costs nothing is had at every tick, one that costs much once the other has no work."""
    # Every tick takes as long as the others: it reads the clock as often.
    engine = Engine(device, limits=Ceiling(8), clock=map(float, count()).__next__)
    in_turns(engine)
    assert len(device.turns) >= 4
    device.turns.clear()
    device.prices = dict.fromkeys("ab", 1e9)
    in_turns(engine)
    assert len(device.turns) <= 3


def test_what_is_drawn_does_not_depend_on_whose_turn_it_was(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    drawn = [request.result(0) for request in in_turns(engine, passes=2)]
    alone = [run_alone(device, request.spec) for request in in_turns(engine, passes=2)]
    assert all(map(np.array_equal, drawn, alone))


def test_pictures_are_developed_before_others_have_the_turn(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    """One that overflowed is decoded once more, by the weights that it was made with."""
    device.is_fast = False
    device.prices = dict.fromkeys("ab", 1e9)
    developed: list[tuple[Hashable, int]] = []
    turn_to = device.turn_to
    device.turn_to = lambda checkpoint: developed.append((checkpoint, len(device.developed))) or turn_to(checkpoint)  # type: ignore[method-assign, func-returns-value]
    in_turns(engine)
    assert developed == [("a", 0), ("b", 2)]


def test_a_checkpoint_that_cannot_be_had_fails_its_own_images_alone(
    engine: Engine[Toy, Toy], device: ToyDevice
) -> None:
    device.unreadable.add("b")
    first, lost, second, lost_too = in_turns(engine)
    assert first.result(0) is not None
    assert second.result(0) is not None
    for request in (lost, lost_too):
        with pytest.raises(RenderFailed, match="cannot be read again"):
            request.result(0)


def test_images_wait_for_a_checkpoint_that_is_read_again(engine: Engine[Toy, Toy], device: ToyDevice) -> None:
    """The others go on meanwhile; with nothing else to do the engine waits for it."""
    reading: Future[None] = Future()
    device.damaged["b"] = PendingFuture(reading)
    requests = [engine.submit(SPEC), engine.submit(replace(SPEC, checkpoint="b"))]
    device.prices = {"a": 1e9}
    while not requests[0].is_done:
        engine.tick()
    assert not requests[1].is_done
    Thread(target=reading.set_result, args=(None,)).start()
    while not requests[1].is_done:
        engine.tick()
    assert requests[1].result(0) is not None
