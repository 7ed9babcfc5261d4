"""The Prometheus metrics of the farm, each declared once: tests hold dashboards, alerts and autoscalers against them.

A process keeps one `Board`. Labels take their values from what an operator has set up (checkpoints, live workers, routes, error
codes), never from what a client has sent.
"""

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from shared.errors import FarmError

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)

Samples = Iterable[tuple[Sequence[str], float]]


class PortTaken(FarmError):
    """The port of the metrics cannot be listened on."""

    code = "port_taken"


@dataclass(frozen=True, slots=True)
class Metric:
    """A Prometheus metric: name, help text and label names."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    def of(self, samples: Samples) -> Family:
        """Return the metric family of samples, each a tuple of label values and a number."""
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = kind(self.name, self.help, labels=self.labels)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family


# The whole farm, read from the database by any api.
DATABASE_UP = Metric(
    "farm_database_up", "gauge", "1 while the database answers the api, else 0; then the next ones are missing."
)
REDIS_UP = Metric(
    "farm_redis_up",
    "gauge",
    "1 while Redis takes what the api writes, else 0; then jobs begin later, and no rate limit holds.",
)
QUEUE_DEPTH = Metric("farm_queue_depth", "gauge", "Jobs that wait.", ("checkpoint",))
QUEUE_OLDEST_S = Metric("farm_queue_oldest_seconds", "gauge", "Age of the oldest job that waits.", ("checkpoint",))
JOBS_RUNNING = Metric("farm_jobs_running", "gauge", "Jobs that workers hold.", ("checkpoint",))
WORKERS = Metric(
    "farm_workers",
    "gauge",
    "Gpu workers that can load it and take jobs: heard within a lease, fit and not draining.",
    ("checkpoint",),
)
RESIDENT_WORKERS = Metric(
    "farm_resident_workers", "gauge", "Those of them that have it loaded, and render it at once.", ("checkpoint",)
)
FLEET_WORKERS = Metric("farm_fleet_workers", "gauge", "Gpu workers that take jobs, of whatever checkpoints.")
BACKLOG_GPU_S = Metric(
    "farm_backlog_gpu_seconds",
    "gauge",
    "Time one worker would need for all work that is not done; missing while no worker has measured its speed.",
    ("checkpoint",),
)
DESIRED_WORKERS = Metric(
    "farm_desired_workers",
    "gauge",
    "Workers that would do all work, of all checkpoints, within FARM_TARGET_WAIT_SECONDS.",
)
DESIRED_BY_CHECKPOINT = Metric(
    "farm_checkpoint_desired_workers",
    "gauge",
    "Workers that would do all work of one checkpoint in that time, for groups of workers that load no other.",
    ("checkpoint",),
)
SCALE_IN_COST = Metric(
    "farm_worker_scale_in_cost",
    "gauge",
    "GPU seconds of finished steps that would be lost if the worker died now; stop the least first.",
    ("worker",),
)
UNFIT = Metric(
    "farm_workers_unfit",
    "gauge",
    "Workers that took themselves out of service because they compute wrongly, of the last day.",
)
GPU_TEMPERATURE_C = Metric("farm_gpu_temperature_celsius", "gauge", "Temperature of the GPU.", ("worker",))
GPU_ECC_ERRORS = Metric(
    "farm_gpu_ecc_errors",
    "gauge",
    "Memory errors of the GPU beyond correction since its driver started.",
    ("worker",),
)
GPU_XID = Metric("farm_gpu_xid", "gauge", "The Xid that the driver reported of the GPU last.", ("worker",))
WEBHOOKS_OVERDUE = Metric("farm_webhooks_overdue", "gauge", "Webhooks that are due and not delivered yet.")
WEBHOOK_LAG_S = Metric(
    "farm_webhook_lag_seconds",
    "gauge",
    "How long the most overdue webhook has been due; receivers that asked to wait left out.",
)

# Each api.
HTTP_REQUEST_S = Metric(
    "farm_http_request_seconds", "histogram", "Time until a request was answered.", ("method", "route", "status")
)

# Each gpu worker.
ATTEMPTS_ENDED = Metric(
    "farm_attempts_ended_total",
    "counter",
    "Attempts at jobs, by how they ended; code says why they failed.",
    ("checkpoint", "outcome", "code"),
)
IMAGES = Metric("farm_images_total", "counter", "Pictures stored for jobs that succeeded.", ("checkpoint",))
JOBS_IN_FLIGHT = Metric("farm_jobs_in_flight", "gauge", "Jobs that this worker holds.")
TICKS = Metric("farm_engine_ticks_total", "counter", "UNet calls made, each for a whole batch.")
BUSY_S = Metric(
    "farm_engine_busy_seconds_total", "counter", "Time spent on ticks; the rest was idle, or went into swaps."
)
IMAGE_STEPS = Metric("farm_engine_image_steps_total", "counter", "Images advanced by a step, over all calls.")
COST_DONE = Metric("farm_engine_cost_total", "counter", "Latent pixels put through the UNet.")
DEVICE_MEMORY = Metric("farm_device_memory_bytes", "gauge", "Memory of the GPU, in all and free.", ("kind",))
SWAPS = Metric(
    "farm_swaps_total", "counter", "Checkpoints made resident, by the tier that their weights came from.", ("tier",)
)
SWAP_S = Metric("farm_swap_seconds_total", "counter", "Time that making checkpoints resident took.", ("tier",))
WEIGHTS_DAMAGED = Metric(
    "farm_weights_damaged_total",
    "counter",
    "Copies of weights found damaged before a picture was made from them, by the tier that they lay in.",
    ("tier",),
)
RESIDENT = Metric("farm_resident_checkpoint", "gauge", "1 for the checkpoint that is resident.", ("checkpoint",))

# Each courier.
RESCUED = Metric(
    "farm_jobs_rescued_total", "counter", "Jobs taken back from silent workers, by where they went.", ("state",)
)
RINGS = Metric("farm_doorbells_rung_total", "counter", "Doorbells rung for jobs that waited unheard.")
WEBHOOKS_SENT = Metric(
    "farm_webhooks_sent_total", "counter", "Attempts at webhooks: delivered, refused or unreachable.", ("outcome",)
)
UPKEEP_AT = Metric("farm_upkeep_timestamp_seconds", "gauge", "When this courier last finished its upkeep.")


def check_port(port: int) -> None:
    """Raise `PortTaken` if the port of the metrics cannot be listened on; 0 is none and always free."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise _taken(port, error) from error


def _taken(port: int, error: OSError) -> PortTaken:
    return PortTaken(
        f"FARM_METRICS_PORT={port} is not available: {error.strerror}. Give each process of a machine its own port."
    )


class Board:
    """The metrics registry of one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each, that nothing here asks for
        self._registry = CollectorRegistry()

    def counter(self, metric: Metric) -> Counter:
        """Register a counter."""
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def gauge(self, metric: Metric) -> Gauge:
        """Register a gauge."""
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)

    def histogram(self, metric: Metric) -> Histogram:
        """Register a histogram, in seconds."""
        return Histogram(metric.name, metric.help, metric.labels, registry=self._registry, buckets=SECONDS_BUCKETS)

    def read(self, read: Callable[[], Iterable[Family]]) -> None:
        """Call `read` for values at every scrape. It must not raise."""
        self._registry.register(_Reading(read))

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return generate_latest(self._registry)

    def serve(self, port: int) -> Callable[[], None]:
        """Serve scrapes on a port of every address, in threads; returns a function that stops them. Raises `PortTaken`."""
        try:
            server, thread = start_http_server(port, registry=self._registry)
        except OSError as error:
            raise _taken(port, error) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)

        return stop


@dataclass(frozen=True, slots=True)
class _Reading:
    read: Callable[[], Iterable[Family]]

    def collect(self) -> Iterator[Family]:
        yield from self.read()

    def describe(self) -> Iterable[Family]:
        # Nothing: asked while it registers, when there may be no connection to read through yet.
        return ()
