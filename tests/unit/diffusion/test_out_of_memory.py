"""Memory of a device that runs out, by whatever name it is told."""

import pytest
import torch

from shared.errors import OutOfMemory
from worker.diffusion import out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_a_shortage_is_told_as_one(error: Exception) -> None:
    with pytest.raises(OutOfMemory) as told, out_of_memory.translated():
        raise error
    assert told.value.__cause__ is error


def test_a_shortage_of_the_host_is_told_as_one() -> None:
    with pytest.raises(OutOfMemory), out_of_memory.translated():
        torch.empty(2**46)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("no")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as told, out_of_memory.translated():
        raise error
    assert told.value is error
