"""Report of a run: counts of jobs, violations and recovery times. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import quantiles
from typing import Any

from shared.vocabulary.states import JobState
from tests.chaos.checker import Violation
from tests.chaos.history import Fault, History, Version

DOUBLE = {"double_visible", "stale_result", "shown_without_success", "shown_without_row"}


def report(history: History, violations: Sequence[Violation], **facts: Any) -> dict[str, Any]:
    """Return all figures as JSON values. Durations are in seconds."""
    jobs = history.by_job()
    kinds = Counter(violation.kind for violation in violations)
    recovered = recoveries(history)
    return {
        **facts,
        "jobs": len(jobs),
        "outcomes": dict(Counter(versions[-1].state for versions in jobs.values()).most_common()),
        "errors": dict(
            Counter(versions[-1].error_code for versions in jobs.values() if versions[-1].state == JobState.FAILED)
        ),
        "faults": len(history.faults),
        "faults_by_kind": dict(sorted(Counter(fault.kind for fault in history.faults).items())),
        "lost": kinds["lost"],
        "double_visible": sum(kinds[kind] for kind in DOUBLE),
        "violations": dict(kinds),
        "violation_details": [f"{one.kind}: {one.job} {one.detail}" for one in violations[:50]],
        "requests": len(history.seen),
        "answers": dict(Counter(_answer(one.act, one.status) for one in history.seen).most_common()),
        "reruns": sum(versions[-1].attempt > 1 for versions in jobs.values()),
        "objects": len(history.objects),
        "weights_shown": len({image.mark for image in history.painted}),
        "orphans": len(history.objects.keys() - {image.key for image in history.shown}),
        "recovery_s": {kind: spread(times) for kind, times in sorted(recovered.items())},
        "kill_recovery_s": spread(_of_kills(recovered)),
        "drain_s": spread(drains(history)),
        "webhooks": webhooks(history),
    }


def recoveries(history: History) -> dict[str, list[float]]:
    """Return, by kind of fault, how long each took to recover from.

    A fault of a worker: until every job that it held runs again or has ended. Of the api: until it serves a client again. Any
    other: from its end to the next success.
    """
    found: dict[str, list[float]] = {}
    jobs = list(history.by_job().values())
    successes = sorted(one.at for one in history.versions if one.state == JobState.SUCCEEDED)
    served = sorted(one.ended for one in history.seen if one.status is not None)
    for fault in history.faults:
        if fault.worker is not None:
            held = [time for time in (_rerun_after(fault, history.faults, versions) for versions in jobs) if time]
        else:
            signs = served if fault.kind.startswith("api") else successes
            held = [at - fault.healed for at in signs if at > fault.healed][:1]
        if held:
            found.setdefault(fault.kind, []).append(max(held))
    return found


def drains(history: History) -> list[float]:
    """Return how long workers took to leave that were told to while they held jobs."""
    jobs = list(history.by_job().values())
    return [
        fault.drain_s
        for fault in history.faults
        if fault.drain_s is not None and any(_rerun_after(fault, history.faults, versions) for versions in jobs)
    ]


def webhooks(history: History) -> dict[str, Any]:
    """Return how many ends were to be told, how many messages came, came again and were refused, and how late they were."""
    ends = {(one.job, one.version): one.at for one in reversed(history.versions) if JobState(one.state).is_final}
    first: dict[str, float] = {}
    for one in history.heard:
        if one.accepted and one.job and (one.job, one.version) in ends:
            first.setdefault(one.message, one.at - ends[one.job, one.version])
    return {
        "asked": len(history.hooked()),
        "arrived": len(first),
        "repeats": len(history.heard) - len({one.message for one in history.heard}),
        "refused": sum(not one.accepted for one in history.heard),
        "delay_s": spread(list(first.values())),
    }


def spread(times: Sequence[float]) -> dict[str, float]:
    """Return p50, p95, max and the number of samples; empty for none."""
    if not times:
        return {}
    cuts = quantiles(times, n=20, method="inclusive") if len(times) > 1 else [times[0]] * 19
    return {"p50": round(cuts[9], 2), "p95": round(cuts[18], 2), "max": round(max(times), 2), "n": len(times)}


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for people."""
    return "\n".join(_lines(figures))


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    for name in (
        "seed",
        "jobs",
        "outcomes",
        "errors",
        "reruns",
        "faults",
        "lost",
        "double_visible",
        "zombie_writes_refused",
    ):
        yield f"{name:24}{figures[name]}"
    yield f"{'violations':24}{figures['violations'] or 'none'}"
    yield f"{'minutes':24}{figures['minutes']}"
    yield f"\n{'recovery after':24}{'faults':>8}{'hits':>8}{'p50 s':>8}{'p95 s':>8}{'max s':>8}"
    for kind, count in figures["faults_by_kind"].items():
        yield _row(kind, count, figures["recovery_s"].get(kind, {}))
    yield _row("time to drain", figures["faults_by_kind"].get("gpu_drain", 0), figures["drain_s"])
    webhooks = figures["webhooks"]
    yield _row("any kill -9 of a worker", figures["kill_recovery_s"].get("n", 0), figures["kill_recovery_s"])
    yield _row("webhooks, delay", webhooks["asked"], webhooks["delay_s"])
    if loss := figures["throughput_after_loss"]:
        back = "never" if loss["back_s"] is None else f"after {loss['back_s']:.1f} s"
        told = (
            f"{loss['before']:.0f} steps/s before, 0.9 of it {back}, {loss['after']:.0f} after {loss['limit_s']:.0f} s"
        )
        yield f"{'throughput after a loss':24}{told}"
    yield from figures["violation_details"]


def _row(name: str, count: int, times: dict[str, float]) -> str:
    cells = "".join(f"{times[key]:8.2f}" if times else f"{'':8}" for key in ("p50", "p95", "max"))
    return f"{name:24}{count:8}{times.get('n', 0):8.0f}{cells}"


def _rerun_after(fault: Fault, faults: Iterable[Fault], versions: Sequence[Version]) -> float | None:
    """Return how long after a worker's fault a job that it took ran again or ended; None for a job that it did not take."""
    if not versions[0].at <= fault.began < versions[-1].at:
        return None
    held: Version | None = None
    claimed_at = 0.0
    for one in versions:
        if one.at <= fault.began:
            claimed_at = one.at if held is None or one.attempt > held.attempt else claimed_at
            held = one
        elif held is None or held.state != JobState.RUNNING or not _is_to_blame(fault, faults, held, claimed_at):
            return None
        elif one.attempt > held.attempt or JobState(one.state).is_final:
            return one.at - fault.began
    return None


def _is_to_blame(fault: Fault, faults: Iterable[Fault], held: Version, claimed_at: float) -> bool:
    """Whether a fault was the first to hit the worker that held a job since it had claimed it."""
    if (held.worker or "").split("@")[0] != fault.worker:
        return False
    return not any(other.worker == fault.worker and claimed_at < other.began < fault.began for other in faults)


def _of_kills(recovered: dict[str, list[float]]) -> list[float]:
    return [time for kind, times in recovered.items() if kind.startswith("gpu_kill") for time in times]


def _answer(act: str, status: int | None) -> str:
    return f"{act} {status or 'unknown'}"
