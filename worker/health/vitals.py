"""Health of a GPU, read by NVML: temperature, uncorrectable memory errors, and the last Xid that the driver reported.

Without an NVIDIA driver there is nothing to read. NVML finds the device of this process by its UUID.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

# Xids after which what a GPU computes cannot be trusted: memory, page retirement, links, falling off the bus.
# docs.nvidia.com/deploy/xid-errors
GRAVE_XIDS = frozenset({48, 63, 64, 74, 79, 92, 94, 95, 119, 140})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Vitals:
    """Degrees Celsius; double-bit memory errors since the driver started; the Xid seen last. None where it is not known."""

    temperature_c: float | None = None
    ecc_errors: int | None = None
    xid: int | None = None


def is_alarming(before: Vitals, now: Vitals) -> bool:
    """Whether new memory errors or a grave Xid call for an examination of the worker."""
    has_new_errors = (now.ecc_errors or 0) > (before.ecc_errors or 0)
    return has_new_errors or (now.xid != before.xid and now.xid in GRAVE_XIDS)


class Monitor:
    """Reads one GPU. `nvml` is the module pynvml, initialised."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._events: Any = self._subscribe()
        self.vitals = Vitals()

    def check(self) -> bool:
        """Read the GPU. Returns whether the change since the last reading is alarming."""
        before, self.vitals = self.vitals, self._read()
        alarming = is_alarming(before, self.vitals)
        if alarming:
            log.warning("gpu.alarming", ecc_errors=self.vitals.ecc_errors, xid=self.vitals.xid)
        return alarming

    def _read(self) -> Vitals:
        nvml, handle = self._nvml, self._handle
        temperature = errors = None
        # Each of these is absent from some GPUs.
        with suppress(nvml.NVMLError):
            temperature = float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        with suppress(nvml.NVMLError):
            errors = int(
                nvml.nvmlDeviceGetTotalEccErrors(
                    handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                )
            )
        return Vitals(temperature, errors, self._last_xid())

    def _subscribe(self) -> Any:
        nvml = self._nvml
        with suppress(nvml.NVMLError):
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self._handle, nvml.nvmlEventTypeXidCriticalError, events)
            return events
        return None

    def _last_xid(self) -> int | None:
        xid = self.vitals.xid
        if self._events is None:
            return xid
        # It raises a timeout once there is no further event.
        with suppress(self._nvml.NVMLError):
            while True:
                xid = int(self._nvml.nvmlEventSetWait_v2(self._events, 0).eventData)
        return xid


def monitor(uuid: str) -> Monitor | None:
    """Return a monitor of the GPU with this UUID, or None where NVML or its driver is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return Monitor(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError as error:
        log.info("gpu.no_vitals", reason=str(error))
        return None
