"""The farm's metrics, for the tests that hold dashboards, alerts and processes against them."""

from shared.infra import metrics
from shared.infra.metrics import Metric

METRICS = {value.name: value for value in vars(metrics).values() if isinstance(value, Metric)}
