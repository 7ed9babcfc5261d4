"""From the host to the device without waiting. An ordinary copy waits for all that the device has still to do."""

from torch import Tensor, device


def staged(tensor: Tensor, to: device) -> Tensor:
    """Return a tensor where a device can fetch it by itself: in pinned memory, which takes a moment to get, on any thread."""
    return tensor if to.type != "cuda" or tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()


def sent(tensor: Tensor, to: device) -> Tensor:
    """Return a tensor on a device. Pinned memory is not given to anyone else before the device has fetched it."""
    return staged(tensor, to).to(to, non_blocking=True)
