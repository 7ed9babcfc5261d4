"""Gpu worker of the chaos suite, `celery -A tests.chaos.gpu worker`: the real entry point with the simulated device `sketch`."""

import sys

from tests.chaos import sketch

# Before the worker is imported: torch and a checkpoint would cost ten seconds of processor time at each of hundreds of restarts.
sys.modules["worker.device"] = sketch

from worker.gpu import app  # noqa: E402

__all__ = ["app"]
