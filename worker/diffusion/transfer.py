"""Asynchronous copies between host and device. An ordinary copy waits for all that the device has still to do."""

from typing import Any

import torch
from torch import Tensor, device


def pinned(tensor: Tensor, to: device) -> Tensor:
    """Return a tensor in pinned memory, from which a CUDA device copies by itself. Allocating takes a moment; any thread may."""
    return tensor if to.type != "cuda" or tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()


def to_device(tensor: Tensor, to: device) -> Tensor:
    """Return a tensor on a device without waiting. Torch does not reuse the pinned memory before the device has copied it."""
    return pinned(tensor, to).to(to, non_blocking=True)


class Readback:
    """Asynchronous copy of tensors to the host, all behind one CUDA event. Tensors of the host are ready at once."""

    def __init__(self, *tensors: Tensor) -> None:
        self._done: Any = None
        self._tensors = tensors
        if tensors[0].is_cuda:
            self._tensors = tuple(_pinned_copy(tensor) for tensor in tensors)
            self._done = torch.cuda.Event()
            self._done.record()

    @property
    def is_ready(self) -> bool:
        """Whether `tensors` would return without waiting."""
        return self._done is None or bool(self._done.query())

    def wait(self) -> None:
        """Block until the device has copied them."""
        if self._done is not None:
            self._done.synchronize()

    def tensors(self) -> tuple[Tensor, ...]:
        """Block until they are copied, then return them."""
        self.wait()
        return self._tensors


def _pinned_copy(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
