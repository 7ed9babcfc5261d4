"""What is read of a GPU. The library is NVIDIA's own pynvml; below it stands a driver of the test's making.

It answers as NVML's C functions do: a status returned, values through pointers, in pynvml's own structures. That a real
driver does the same has not been tried.
"""

from typing import Any

import pynvml
import pytest

from worker.health import vitals
from worker.health.vitals import Monitor, Vitals, is_alarming

UUID = "GPU-6d9d1f0c-7a2b-4f2e-9d1e-0123456789ab"
SUCCESS = 0


class Driver:
    """One GPU, 61 °C warm, without ECC; `xids` are yet to be told of."""

    def __init__(self) -> None:
        self.temperature: int | None = 61
        self.ecc_errors: int | None = None
        self.tells_events = True
        self.xids: list[int] = []

    def nvmlInitWithFlags(self, _flags: int) -> int:
        return SUCCESS

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, _handle: Any) -> int:
        return SUCCESS if uuid.value == UUID.encode() else pynvml.NVML_ERROR_NOT_FOUND

    def nvmlDeviceGetTemperature(self, _handle: Any, sensor: Any, found: Any) -> int:
        assert sensor.value == pynvml.NVML_TEMPERATURE_GPU
        return _put(found, self.temperature)

    def nvmlDeviceGetTotalEccErrors(self, _handle: Any, kind: Any, since: Any, found: Any) -> int:
        assert (kind.value, since.value) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return _put(found, self.ecc_errors)

    def nvmlEventSetCreate(self, _events: Any) -> int:
        return SUCCESS if self.tells_events else pynvml.NVML_ERROR_NOT_SUPPORTED

    def nvmlDeviceRegisterEvents(self, _handle: Any, kinds: Any, _events: Any) -> int:
        assert kinds.value == pynvml.nvmlEventTypeXidCriticalError
        return SUCCESS

    def nvmlEventSetWait_v2(self, _events: Any, found: Any, timeout_ms: Any) -> int:
        assert timeout_ms.value == 0
        if not self.xids:
            return pynvml.NVML_ERROR_TIMEOUT
        found._obj.eventData = self.xids.pop(0)
        return SUCCESS


def _put(pointer: Any, value: int | None) -> int:
    if value is None:
        return pynvml.NVML_ERROR_NOT_SUPPORTED
    pointer._obj.value = value
    return SUCCESS


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(pynvml, "nvmlLib", made)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return made


@pytest.fixture
def monitor(driver: Driver) -> Monitor:
    assert driver
    found = vitals.monitor(UUID)
    assert found
    return found


@pytest.mark.parametrize(
    ("before", "now", "alarming"),
    [
        (Vitals(), Vitals(), False),
        (Vitals(40, 0), Vitals(90, 0), False),
        (Vitals(40, 0), Vitals(40, 1), True),
        (Vitals(), Vitals(xid=13), False),  # a client's kernel went astray, not the GPU
        (Vitals(), Vitals(xid=79), True),
        (Vitals(xid=79), Vitals(xid=79), False),
    ],
)
def test_what_of_a_gpu_is_alarming(before: Vitals, now: Vitals, alarming: bool) -> None:
    assert is_alarming(before, now) is alarming


def test_a_gpu_without_ecc_still_has_a_temperature(monitor: Monitor) -> None:
    assert not monitor.check()
    assert monitor.vitals == Vitals(61.0, None, None)


def test_a_memory_error_sounds_the_alarm_once(monitor: Monitor, driver: Driver) -> None:
    driver.ecc_errors = 0
    assert not monitor.check()
    driver.ecc_errors = 2
    assert [monitor.check(), monitor.check()] == [True, False]
    assert monitor.vitals == Vitals(61.0, 2, None)


def test_the_last_of_several_xids_counts_and_stays(monitor: Monitor, driver: Driver) -> None:
    driver.xids = [13, 79]
    assert [monitor.check(), monitor.check()] == [True, False]
    assert monitor.vitals.xid == 79
    driver.xids = [31]  # a client's kernel
    assert not monitor.check()
    assert monitor.vitals.xid == 31


def test_a_driver_that_tells_no_events_is_read_all_the_same(driver: Driver) -> None:
    driver.tells_events = False
    driver.xids = [79]
    found = vitals.monitor(UUID)
    assert found
    assert not found.check()
    assert found.vitals == Vitals(61.0, None, None)


def test_a_gpu_that_is_gone_has_no_vitals_and_ends_nothing(monitor: Monitor, driver: Driver) -> None:
    monitor.check()
    driver.temperature = None
    assert not monitor.check()
    assert monitor.vitals == Vitals()


def test_where_there_is_no_driver_or_no_such_gpu_nothing_is_read(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert driver
    assert vitals.monitor("GPU-another") is None
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", _no_library)
    assert vitals.monitor(UUID) is None


def _no_library(_name: str) -> None:
    raise OSError("libnvidia-ml.so.1: cannot open shared object file")
