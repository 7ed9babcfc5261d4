"""Between the host and the device without waiting. An ordinary copy waits for all that the device has still to do."""

from typing import Any

import torch
from torch import Tensor, device


def staged(tensor: Tensor, to: device) -> Tensor:
    """Return a tensor where a device can fetch it by itself: in pinned memory, which takes a moment to get, on any thread."""
    return tensor if to.type != "cuda" or tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()


def sent(tensor: Tensor, to: device) -> Tensor:
    """Return a tensor on a device. Pinned memory is not given to anyone else before the device has fetched it."""
    return staged(tensor, to).to(to, non_blocking=True)


class Fetched:
    """Tensors on their way to the host, together. From the host they are there at once."""

    def __init__(self, *tensors: Tensor) -> None:
        self._done: Any = None
        self._tensors = tensors
        if tensors[0].is_cuda:
            self._tensors = tuple(_pinned_copy(tensor) for tensor in tensors)
            self._done = torch.cuda.Event()
            self._done.record()

    @property
    def is_ready(self) -> bool:
        """Whether the device has sent them."""
        return self._done is None or bool(self._done.query())

    def wait(self) -> None:
        """Wait until it has."""
        if self._done is not None:
            self._done.synchronize()

    def tensors(self) -> tuple[Tensor, ...]:
        """Wait, then return them."""
        self.wait()
        return self._tensors


def _pinned_copy(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
