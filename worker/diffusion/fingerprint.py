"""Checksum of a model's weights, computed on their device: one flipped bit there changes it."""

import hashlib
from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn

from worker.diffusion import out_of_memory

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """Return a digest of all weights' bits, the same on every device and in every memory format; waits for the device once.

    Raises `OutOfMemory`. Integer sums do not depend on the order in which a device adds, as float sums would.
    """
    weights = [tensor for module in modules for tensor in chain(module.parameters(), module.buffers())]
    with out_of_memory.translated():
        sums = torch.stack([_words(tensor).sum(dtype=torch.int64) for tensor in weights])
        return hashlib.sha256(sums.cpu().numpy().tobytes()).hexdigest()


def _words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(_WORDS[tensor.element_size()])
