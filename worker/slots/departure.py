"""What changes about a gpu worker once it is assembled: whether it may claim, drains, is unfit, or has been told to leave."""

import os
import signal

import structlog

from worker.slots.claim_gate import ClaimGate

log = structlog.get_logger(__name__)


class Departure:
    """The state of a worker's leaving. Parts that may end the worker get it before the worker exists."""

    def __init__(self, claim_gate: ClaimGate) -> None:
        self._claim_gate = claim_gate
        self._has_worked = False
        self._is_leaving = False
        self.is_draining = False
        self.is_unfit = False

    def leave(self) -> None:
        """Ask this process to drain and end, just as an operator would."""
        # Once: a second signal would end it at once.
        if not self._is_leaving:
            self._is_leaving = True
            os.kill(os.getpid(), signal.SIGTERM)

    def heed(self, is_draining: bool) -> None:
        """Do as the fleet says: leave when asked to drain; stay idle if that was asked before this process started."""
        if not is_draining:
            self._has_worked = True
            self._claim_gate.pause(False)
        elif self._has_worked:
            self.leave()

    def begin_drain(self) -> None:
        """Claim nothing more; what runs may finish."""
        self.is_draining = True
        self._claim_gate.close()

    def condemn(self, reason: str) -> None:
        """Claim nothing more: the worker is unfit."""
        log.critical(
            "worker.unfit", reason=reason, fix="its supervisor starts it anew; if that repeats, replace the GPU"
        )
        self.is_unfit = True
        self._claim_gate.close()
