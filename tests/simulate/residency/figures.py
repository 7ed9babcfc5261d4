"""What came of a scene, in figures. Waits are in seconds and of the jobs that came after the warm-up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.simulate.residency.play import Ran
from tests.simulate.residency.scene import OneImage

# A tenant that asks for less than this a second is a visitor; shares are those of the others.
LARGE = 5.0


def figures(ran: Ran) -> dict[str, Any]:
    """Sum up. A job that has not begun at the end counts with what it has waited so far."""
    scene = ran.scene
    jobs = [job for job in ran.jobs if job.at_s >= scene.warm_up_s]
    p50, p95, most = np.percentile([wait_s(job, scene.length_s) for job in jobs], (50, 95, 100))
    swap_s, busy_s = sum(gpu.swap_s for gpu in ran.gpus), sum(gpu.busy_s for gpu in ran.gpus)
    ended = sum(job.ended_s is not None and job.ended_s >= scene.warm_up_s for job in ran.jobs)
    calls, rows = sum(gpu.calls for gpu in ran.gpus), sum(gpu.rows for gpu in ran.gpus)
    return {
        "scene": scene.name,
        "policy": ran.policy,
        "wait_p50_s": round(float(p50), 2),
        "wait_p95_s": round(float(p95), 2),
        "wait_max_s": round(float(most), 1),
        "rendered_of_asked": round(ended / len(jobs), 3),
        "swaps_per_1000": round(1000 * sum(sum(gpu.swaps.values()) for gpu in ran.gpus) / max(1, ended)),
        "swap_percent": round(100 * swap_s / ran.gpu_s, 1),
        "disk_loads": len(ran.disk_loads_s),
        "images_a_call": round(rows / max(1, calls), 2),
        "busy_percent": round(100 * (busy_s + swap_s) / ran.gpu_s),
        "elsewhere_max_s": round(max(ran.moved_s, default=0.0), 1),
        "ended_twice": ran.ended_twice,
    }


def wait_s(job: OneImage, end_s: float) -> float:
    """Return how long a job waited, or has waited at the end."""
    return (job.started_s if job.started_s is not None else end_s) - job.at_s


def shares(ran: Ran) -> Mapping[str, float]:
    """Return what each large tenant was given, as a ratio to its weight's part: 1 is just."""
    weights = {tenant.name: tenant.weight for tenant in ran.scene.tenants if tenant.rate >= LARGE}
    got = Counter(
        job.owner
        for job in ran.jobs
        if job.owner in weights and job.ended_s is not None and job.ended_s >= ran.scene.warm_up_s
    )
    part = sum(got.values()) / sum(weights.values())
    return {name: round(got[name] / (part * weight), 3) for name, weight in weights.items()}


def visitors(ran: Ran) -> Sequence[float]:
    """Return the waits of those who ask for little."""
    few = {tenant.name for tenant in ran.scene.tenants if tenant.rate < LARGE}
    return [wait_s(job, ran.scene.length_s) for job in ran.jobs if job.owner in few and job.at_s >= ran.scene.warm_up_s]
