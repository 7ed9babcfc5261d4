"""Divisions by one, left out. Diffusers divides after each residual and attention by a factor that SD1.5 leaves at 1.

These are 54 of the some 730 operations of a UNet call, each of them a launch on a GPU and a walk over all of its numbers.
"""

from typing import Any

FACTORS = ("output_scale_factor", "rescale_output_factor")


class _One:
    """Stands for the number in a division of a tensor, which it leaves as it is. Asked by torch in place of `torch.div`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the dividend."""
        del func, types, kwargs
        return args[0]


def leave_out(module: Any) -> None:
    """Have a module of diffusers' not divide by its factors of 1. Its results stay the same bit for bit."""
    for part, factor in _factors(module):
        if getattr(part, factor) == 1:
            setattr(part, factor, _One())


def put_back(module: Any) -> None:
    """Have it divide again: a compiler understands numbers, and leaves such divisions out by itself."""
    for part, factor in _factors(module):
        if isinstance(getattr(part, factor), _One):
            setattr(part, factor, 1.0)


def _factors(module: Any) -> list[tuple[Any, str]]:
    return [(part, factor) for part in module.modules() for factor in FACTORS if hasattr(part, factor)]
