"""A GPU that is none: its tensors say that they lie on `cuda:0` and are computed on the CPU, in the same numbers.

It takes less than a GPU does. A call whose tensors lie on both sides fails, as there. So does, while nothing may wait, whatever
has the host wait for a device: reading a number, an ordinary copy in either direction, an index that must be counted first. What
is copied to the host arrives only when its event is waited for. What it cannot show: speed, memory, kernels, bits.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

PHANTOM = torch.device("cuda", 0)
CPU = torch.device("cpu")
READS = {
    f"torch.Tensor.{name}"
    for name in (
        "item",
        "tolist",
        "nonzero",
        "argwhere",
        "masked_select",
        "unique",
        "equal",
        "allclose",
        "is_nonzero",
        "__format__",
        "__repr__",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__complex__",
        "__contains__",
    )
}
READS |= {name.replace("torch.Tensor.", "torch.") for name in READS} | {"torch.unique_consecutive", "torch.bincount"}
READS |= {"torch.linalg.inv", "torch.linalg.solve", "torch.linalg.lstsq"}  # whether there was a solution
NUMBERS = {"alpha", "beta", "value", "fill_value"}  # arguments that a launch must know
MADE_ON_THE_HOST = {"torch.tensor", "torch.as_tensor", "torch.from_numpy", "torch.Tensor.new_tensor"}


class Waited(AssertionError):
    """The host waited for the device, or a GPU would have made it."""


class Stranded(AssertionError):
    """Tensors of one call lie on the host and on the device."""


class PhantomTensor(Tensor):
    """A tensor on the phantom: one on the CPU that answers every call by our rules, on any thread."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a call that this tensor is part of."""
        del types
        return _answered(func, args, kwargs or {})


class Phantom(TorchFunctionMode):
    """The device. While it is entered, this thread's tensors may move to it and be made on it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer whatever is asked of a tensor."""
        del types
        return _answered(func, args, kwargs or {})


class _Stream:
    """What the device has still to copy to the host, and whether the host may wait for it."""

    def __init__(self) -> None:
        self.to_do: list[Callable[[], Any]] = []
        self.may_wait = True
        self.pinned: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def wait(self, why: str) -> None:
        if not self.may_wait:
            raise Waited(why)
        finish()


_stream = _Stream()


class _Event:
    """As torch.cuda.Event: done once somebody has waited for it."""

    def __init__(self) -> None:
        self._after: list[Callable[[], Any]] = []

    def record(self) -> None:
        self._after = list(_stream.to_do)

    def query(self) -> bool:
        return not any(one in _stream.to_do for one in self._after)

    def synchronize(self) -> None:
        if not self.query():
            _stream.wait("an event")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make an error of every call that would have the host wait for the device."""
    _stream.may_wait = False
    try:
        yield
    finally:
        _stream.may_wait = True


def finish() -> None:
    """Let the device do all that it was told to, as a real one does meanwhile."""
    with torch.inference_mode():
        while _stream.to_do:
            _stream.to_do.pop(0)()


@contextmanager
def present(monkeypatch: Any, *, memory_bytes: int = 80 * 2**30) -> Iterator[None]:
    """Let the code under test find the phantom where it looks for a GPU."""
    properties = SimpleNamespace(total_memory=memory_bytes, uuid="phantom")
    for name, answer in {
        "Event": _Event,
        "is_available": lambda: True,
        "get_device_name": lambda _: "Phantom",
        "get_device_properties": lambda _: properties,
        "mem_get_info": lambda _: (memory_bytes, memory_bytes),
        "get_per_process_memory_fraction": lambda _: 1.0,
        "memory_allocated": lambda _: 0,
        "memory_reserved": lambda _: 0,
        "max_memory_allocated": lambda _: 0,
        "reset_peak_memory_stats": lambda _: None,
        "empty_cache": lambda: None,
        "synchronize": lambda _=None: _stream.wait("torch.cuda.synchronize"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    with Phantom():
        yield


def _answered(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if any(hasattr(one, "__torch_function__") and not isinstance(one, Tensor) for one in args):
        return NotImplemented  # it has an answer of its own
    name = _name(func)
    with torch._C.DisableTorchFunction():
        special = SPECIAL.get(name)
        if special is not None:
            return special(func, args, dict(kwargs))
        if name in READS and any(isinstance(one, PhantomTensor) for one in args):
            _stream.wait(name)
        return _computed(func, name, args, dict(kwargs))


def _computed(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU what a call wants, and leave the result where its tensors are."""
    wanted = _device(kwargs.get("device"))
    if any(isinstance(kwargs.get(name), PhantomTensor) for name in NUMBERS):
        _stream.wait(f"{name} by a number from the device")
    if wanted == PHANTOM and kwargs.get("generator") is not None:
        raise Stranded(f"{name}: the generator is the host's")
    tensors = list(_tensors((args, kwargs)))
    ours = [one for one in tensors if isinstance(one, PhantomTensor)]
    if ours and (lost := [one for one in tensors if not isinstance(one, PhantomTensor) and one.dim()]):
        raise Stranded(f"{name}: {tuple(lost[0].shape)} lies on the host")
    if wanted == PHANTOM and name in MADE_ON_THE_HOST:
        _stream.wait(f"{name} on the device")
    if wanted is not None:
        kwargs["device"] = CPU
    is_pinned = kwargs.pop("pin_memory", False)
    made = func(*_mapped(_inner, args), **_mapped(_inner, kwargs))
    if wanted == PHANTOM or (ours and wanted is None and name not in READS):
        return _mapped(_on_phantom, made)
    if is_pinned:
        _pin(made)
    return made


def _copied(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`to`: between the sides it waits, unless the host's memory is pinned and nobody asks for the end."""
    tensor, *rest = args
    memory_format = kwargs.pop("memory_format", None)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*rest, **{k: v for k, v in kwargs.items() if k != "copy"})
    here = isinstance(tensor, PhantomTensor)
    device = _device(device) or (PHANTOM if here else CPU)
    inner = _inner(tensor)
    changed = inner.to(dtype=dtype or inner.dtype)
    if memory_format is not None:
        changed = changed.contiguous(memory_format=memory_format)
    if here == (device == PHANTOM):
        if changed is inner and not kwargs.get("copy"):
            return tensor
        return _on_phantom(changed) if here else changed
    if here:
        _stream.wait("a copy to the host")
        return changed.clone()
    if not (non_blocking and _is_pinned(tensor)):
        _stream.wait("a copy from memory that is not pinned")
    return _on_phantom(changed.clone())


def _to_cpu(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _copied(_, (*args, CPU), kwargs)


def _copied_into(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`copy_`: to pinned memory it arrives later."""
    into, source = args[:2]
    late = kwargs.get("non_blocking", len(args) > 2 and args[2])
    sides = isinstance(into, PhantomTensor), isinstance(source, PhantomTensor)
    if sides == (False, True) and late and _is_pinned(into):
        into.view(-1).view(torch.uint8).fill_(0xAA)
        kept = _inner(source).clone()
        _stream.to_do.append(lambda: into.copy_(kept))
        return into
    if sides[0] != sides[1] and not (late and _is_pinned(source if sides[0] else into)):
        _stream.wait("a copy")
    _inner(into).copy_(_inner(source))
    return into


def _indexed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An index of flags must be counted before the result has a size; one from the host must be copied first."""
    parts = args[1] if isinstance(args[1], tuple) else (args[1],)
    if isinstance(args[0], PhantomTensor) and (
        any(one.dtype == torch.bool or not isinstance(one, PhantomTensor) for one in _tensors(args[1]))
        or any(isinstance(part, list) for part in parts)
    ):
        _stream.wait("an index")
    ends = [end for part in parts if isinstance(part, slice) for end in (part.start, part.stop, part.step)]
    if any(isinstance(end, PhantomTensor) for end in ends):
        _stream.wait("the end of a slice")
    return _computed(func, _name(func), args, kwargs)


def _chosen(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`where` of a condition alone, and `repeat_interleave` by counts from the device, give results of unknown size."""
    if _name(func) == "torch.where":
        is_unknown = len(args) == 1 and isinstance(args[0], PhantomTensor)
    else:
        is_unknown = isinstance(args[-1], PhantomTensor) and kwargs.get("output_size") is None
    if is_unknown:
        _stream.wait(_name(func))
    return _computed(func, _name(func), args, kwargs)


def _filled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) > 1 and isinstance(args[1], PhantomTensor):
        _stream.wait("a number from the device to fill with")
    return _computed(func, _name(func), args, kwargs)


def _as_array(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Numpy takes nothing from a device, however long one would wait."""
    if isinstance(args[0], PhantomTensor):
        raise Stranded("numpy's arrays lie on the host")
    return func(*args, **kwargs)


def _pinned_copy(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    del kwargs
    if isinstance(args[0], PhantomTensor):
        raise Stranded("only the host's memory can be pinned")
    return _pin(args[0].clone())


def _device_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return PHANTOM if isinstance(args[0], PhantomTensor) else func(*args, **kwargs)


def _is_on_gpu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    del func, kwargs
    return isinstance(args[0], PhantomTensor)


def _says_pinned(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    del func, kwargs
    return _is_pinned(args[0])


def _are_alike(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Asked by a module that moves: whether a weight stays the object that it is."""
    del kwargs
    return isinstance(args[0], PhantomTensor) == isinstance(args[1], PhantomTensor)


def _unchanged_grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Nothing on the phantom has a gradient."""
    return args[0] if isinstance(args[0], PhantomTensor) else func(*args, **kwargs)


def _replaced(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`data = …`: the tensor itself gets other numbers, not what stands for it on the CPU."""
    return func(*args, **kwargs)


def _deep_copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, memo = args
    if not isinstance(tensor, PhantomTensor):
        return func(*args, **kwargs)
    memo[id(tensor)] = _on_phantom(_inner(tensor).clone())
    return memo[id(tensor)]


SPECIAL: dict[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "_has_compatible_shallow_copy_type": _are_alike,
    "torch.Tensor.requires_grad_": _unchanged_grad,
    "torch.Tensor.data.__set__": _replaced,
    "torch.Tensor.__deepcopy__": _deep_copied,
    "torch.Tensor.to": _copied,
    "torch.Tensor.cpu": _to_cpu,
    "torch.Tensor.copy_": _copied_into,
    "torch.Tensor.__getitem__": _indexed,
    "torch.Tensor.__setitem__": _indexed,
    "torch.Tensor.numpy": _as_array,
    "torch.Tensor.__array__": _as_array,
    "torch.Tensor.repeat_interleave": _chosen,
    "torch.repeat_interleave": _chosen,
    "torch.where": _chosen,
    "torch.full": _filled,
    "torch.full_like": _filled,
    "torch.Tensor.pin_memory": _pinned_copy,
    "torch.Tensor.is_pinned": _says_pinned,
    "torch.Tensor.device.__get__": _device_of,
    "torch.Tensor.is_cuda.__get__": _is_on_gpu,
}


@cache
def _name(func: Any) -> str:
    return resolve_name(func) or getattr(func, "__name__", "")


def _tensors(nest: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested arguments."""
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, tuple | list):
        for one in nest:
            yield from _tensors(one)
    elif isinstance(nest, dict):
        yield from _tensors(list(nest.values()))


def _mapped(change: Callable[[Any], Any], nest: Any) -> Any:
    """Change every tensor of nested arguments or results."""
    if isinstance(nest, Tensor):
        return change(nest)
    if type(nest) in {tuple, list}:
        return type(nest)(_mapped(change, one) for one in nest)
    if isinstance(nest, dict):
        return {key: _mapped(change, one) for key, one in nest.items()}
    return nest


def _inner(one: Any) -> Any:
    return one.as_subclass(Tensor) if isinstance(one, PhantomTensor) else one


def _on_phantom(one: Any) -> Any:
    return one.detach().as_subclass(PhantomTensor) if isinstance(one, Tensor) else one


def _device(one: Any) -> torch.device | None:
    if one is None:
        return None
    device = torch.device(one)
    return PHANTOM if device.type == "cuda" else device


def _pin(tensor: Tensor) -> Tensor:
    _stream.pinned[tensor.untyped_storage().data_ptr()] = tensor
    return tensor


def _is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in _stream.pinned
