"""Removes divisions by one: diffusers divides after each residual and attention by a factor that is 1 in SD1.5.

These are 54 of the some 730 operations of a UNet call, each of them a launch on a GPU and a walk over all of its numbers.
"""

from typing import Any

FACTORS = ("output_scale_factor", "rescale_output_factor")


class _One:
    """Divisor that leaves a tensor as it is: torch calls this class instead of `torch.div`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the dividend."""
        del func, types, kwargs
        return args[0]


def leave_out(module: Any) -> None:
    """Make a module of diffusers skip its divisions by 1. Its results stay the same bit for bit."""
    for part, factor in _factors(module):
        if getattr(part, factor) == 1:
            setattr(part, factor, _One())


def put_back(module: Any) -> None:
    """Undo `leave_out`: a compiler needs numbers, and drops divisions by 1 by itself."""
    for part, factor in _factors(module):
        if isinstance(getattr(part, factor), _One):
            setattr(part, factor, 1.0)


def _factors(module: Any) -> list[tuple[Any, str]]:
    return [(part, factor) for part in module.modules() for factor in FACTORS if hasattr(part, factor)]
