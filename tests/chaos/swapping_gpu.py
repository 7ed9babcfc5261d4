"""Gpu worker of the chaos suite, `celery -A tests.chaos.swapping_gpu worker`: the real entry point with the device `swapping`."""

import sys

from tests.chaos import libraries

# Before the worker is imported: the libraries would cost six seconds of processor time at each of hundreds of restarts.
sys.modules["worker.diffusion.checkpoint_loader"] = libraries
sys.modules["worker.diffusion.tensor_names"] = libraries

from tests.chaos import swapping  # noqa: E402

sys.modules["worker.device"] = swapping

from worker.gpu import app  # noqa: E402

__all__ = ["app"]
