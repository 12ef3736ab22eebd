"""A simulated CUDA device: it finds mixed devices and host waits on a machine without a GPU.

Tensors on the simulated device hold real values in CPU memory and report `cuda:0` as their device. Every operation runs
the CPU kernel, so results are those of the CPU bit for bit. An operation that mixes such a tensor with a tensor in CPU
memory raises `MixedDevices`, as CUDA does. Everything that makes the host wait for the device is counted by kind and by
line of the product. A download that does not block contains NaN (or the lowest integer) until the host has waited.

Not simulated:

- Time, streams that run side by side, and CUDA's own kernels: their rounding, their limits, their memory.
- Autocast uses the CPU's lists of operations. On CUDA, layer norm, softmax and sums also run in float32.
- `DistributedDataParallel`'s buckets and NCCL: use `moved_by_ddp` for what DDP does to the arguments of a call.
- `torch.compile` and CUDA graphs.
- `Module.to` keeps a parameter's object on CUDA; here it makes a new one: move a module first, then make its optimiser.
- In-place operations that change a tensor's shape (`resize_`, `squeeze_`): they raise `NotSimulated`.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch._dynamo  # PyTorch imports it when a mode is used, which fails while its functions are replaced
from torch import Tensor, nn
from torch.distributed.utils import _recursive_to
from torch.optim import Optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")
PRODUCT = ("/detr/", "/pipelines/", "/jobs/", "/tests/")
THIS_FILE = __file__

# operations that wait because the size of their result depends on values
WAITING = {
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::_unique": "unique",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::bincount": "bincount",
    "aten::equal": "equal",
    "aten::is_nonzero": "bool",
    "aten::_local_scalar_dense": "item",
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# operations that do not take a CPU tensor without dimensions; elementwise ones do
STRICT = {
    "aten::cat", "aten::stack", "aten::gather", "aten::scatter", "aten::index_select", "aten::embedding", "aten::mm",
    "aten::bmm", "aten::addmm", "aten::convolution", "aten::_fused_adamw_", "aten::_fused_adam_",
}  # fmt: skip

Module = TypeVar("Module", bound=nn.Module)


class MixedDevices(RuntimeError):
    """One operation was given tensors on the simulated device and tensors in CPU memory."""


class NotSimulated(NotImplementedError):
    """The simulation cannot do this; see the module's docstring."""


class SimulatedCuda:
    """The simulated device, while `running` it.

    Attributes:
        device: `cuda:0`.
        waits: how often the host waited since the last `reset`, by kind: "item", "bool", "float", "int", "tolist",
            "download", "upload", "nonzero", "mask" (boolean index), "index" (index in CPU memory), "masked_select",
            "unique", "equal", "event", "synchronize" and others. An upload counts unless it comes from pinned memory
            and is `non_blocking`.
        lines: the same by (kind, "path/to/file.py:line").
        copies: bytes by "upload" and "download", whether the host waited for them or not.
    """

    device = DEVICE

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.lines: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[str] = Counter()
        self._pinned: dict[int, object] = {}  # address of the storage: the storage, so that the address is not reused
        self._unfinished: list[tuple[Tensor, Tensor]] = []  # downloads: destination, values
        self._work = 0  # grows with every operation on the device
        self._finished = 0  # the work that the host has waited for

    def reset(self) -> None:
        """Forget all counts."""
        self.waits.clear()
        self.lines.clear()
        self.copies.clear()

    def move(self, module: Module) -> Module:
        """Move a module to the device without counting it."""
        with self.uncounted():
            return module.to(self.device)

    def upload(self, tensor: Tensor) -> Tensor:
        """Return a copy of a CPU tensor on the device, without counting it."""
        return SimulatedTensor(tensor.detach().clone())

    def values(self, tensor: Tensor) -> Tensor:
        """Return the values of a tensor in CPU memory, without counting it: for assertions."""
        return tensor.elem.detach().clone() if isinstance(tensor, SimulatedTensor) else tensor.detach()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave the counts as they are."""
        kept = Counter(self.waits), Counter(self.lines), Counter(self.copies)
        try:
            yield
        finally:
            self.waits, self.lines, self.copies = kept

    def pin(self, tensor: Tensor) -> Tensor:
        """Mark the memory of a CPU tensor as pinned."""
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether the memory of a CPU tensor is pinned."""
        return tensor.untyped_storage().data_ptr() in self._pinned

    # what the tensors report

    def work(self) -> None:
        """Note that the device has something more to do."""
        self._work += 1

    def wait(self, kind: str) -> None:
        """Count that the host waits until the device has done everything."""
        self.waits[kind] += 1
        self.lines[kind, _product_line()] += 1
        self.finish()

    def finish(self) -> None:
        """Let the device do everything that it was given."""
        self._finished = self._work
        unfinished, self._unfinished = self._unfinished, []
        for destination, values in unfinished:
            destination.copy_(values)

    def uploaded(self, source: Tensor, *, non_blocking: bool) -> None:
        """Note a copy from CPU memory."""
        self.work()
        self.copies["upload"] += source.numel() * source.element_size()
        if not (non_blocking and self.is_pinned(source)):
            self.wait("upload")

    def downloaded(self, source: SimulatedTensor, destination: Tensor, *, non_blocking: bool) -> None:
        """Fill `destination`, in CPU memory: now, or once the host has waited."""
        self.work()
        self.copies["download"] += source.numel() * source.element_size()
        if non_blocking and self.is_pinned(destination):
            _poison(destination)
            self._unfinished.append((destination, source.elem.detach().to(destination.dtype, copy=True)))
        else:
            self.wait("download")
            destination.copy_(source.elem)


_current: list[SimulatedCuda] = []


def _simulated() -> SimulatedCuda:
    if not _current:
        raise NotSimulated("a tensor of the simulated device is used after the simulation has ended")
    return _current[-1]


class SimulatedTensor(Tensor):
    """A tensor that reports `cuda:0` as its device; `elem` has its values."""

    elem: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, elem: Tensor) -> SimulatedTensor:
        # never an inference tensor: in inference mode PyTorch makes views of parameters, which are normal tensors
        with torch.inference_mode(False):
            made: SimulatedTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                elem.size(),
                strides=elem.stride(),
                storage_offset=elem.storage_offset(),
                dtype=elem.dtype,
                layout=elem.layout,
                device="cpu",
            )
        made.elem = elem
        return made

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, SimulatedTensor):
            raise NotSimulated("`.data =` of a simulated tensor takes a simulated tensor")
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.elem = value.elem

    def get_device(self) -> int:
        return 0

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        device, dtype, non_blocking, copy, memory_format = _to_arguments(args, kwargs)
        if device is None or device.type == "cuda":
            others = {} if memory_format is None else {"memory_format": memory_format}
            return Tensor.to(self, dtype or self.dtype, copy=copy, **others)  # type: ignore[no-any-return]
        values = self if dtype is None else Tensor.to(self, dtype)
        assert isinstance(values, SimulatedTensor)
        destination = torch.empty_like(values.elem, memory_format=memory_format or torch.preserve_format)
        if non_blocking:
            _simulated().pin(destination)  # PyTorch pins the destination by itself
        _simulated().downloaded(values, destination, non_blocking=non_blocking)
        return destination

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to("cpu", **kwargs)

    def cuda(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def item(self) -> Any:
        return self._read("item").item()

    def tolist(self) -> Any:
        return self._read("tolist").tolist()

    def __bool__(self) -> bool:
        return bool(self._read("bool"))

    def __float__(self) -> float:
        return float(self._read("float"))

    def __int__(self) -> int:
        return int(self._read("int"))

    def __index__(self) -> int:
        return int(self._read("int"))

    def _read(self, kind: str) -> Tensor:
        _simulated().wait(kind)
        return self.elem.detach()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def pin_memory(self, *args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def is_pinned(self, *args: Any, **kwargs: Any) -> bool:
        return False

    def record_stream(self, stream: object) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = SimulatedTensor(self.elem.detach().clone())
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self, **_: Any) -> str:
        return f"SimulatedTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Mode(TorchDispatchMode):
    """Sees operations that only name the device, such as `torch.zeros(3, device="cuda")`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run one operation on the values, with the rules of the device."""
    name: str = func._schema.name
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    wants_device = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
    pins = bool(kwargs.pop("pin_memory", None))
    if not on_device and not wants_device:
        if any(tensor.is_meta for tensor in tensors):
            # under a mode, `torch.tensor(..., device="meta")` makes a tensor in CPU memory
            args = tree_map(_without_memory, args)
        made = func(*args, **kwargs)
        return _simulated().pin(made) if pins else made
    if _is_composite(func):  # in inference mode PyTorch hands these over whole
        with _Mode():
            return func.decompose(*args, **kwargs)
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")

    device = _simulated()
    if name == "aten::copy_":
        return _copy_(func, args, kwargs)
    if name == "aten::_to_copy" and not on_device:
        device.uploaded(tensors[0], non_blocking=bool(kwargs.get("non_blocking")))
        return SimulatedTensor(func(*args, **kwargs))
    _refuse_mix(name, args, tensors, on_device)
    device.work()
    kind = _waiting_kind(name, args, kwargs)
    if kind is not None:
        device.wait(kind)

    wrappers = {id(tensor.elem): tensor for tensor in on_device}
    out = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    for tensor in on_device:
        if tensor.shape != tensor.elem.shape:
            raise NotSimulated(f"{name} changes the shape of a tensor in place")

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = wrappers.get(id(value))  # what an in-place operation returns is its argument
        return SimulatedTensor(value) if known is None else known

    return tree_map(wrapped, out)


@lru_cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _values(value: Any) -> Any:
    return value.elem if isinstance(value, SimulatedTensor) else value


def _without_memory(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _copy_(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    destination, source = args[0], args[1]
    non_blocking = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
    device = _simulated()
    if not isinstance(destination, SimulatedTensor):
        device.downloaded(source, destination, non_blocking=non_blocking)
        return destination
    if isinstance(source, SimulatedTensor):
        device.work()
    else:
        device.uploaded(source, non_blocking=non_blocking)
    func(destination.elem, _values(source))
    return destination


def _refuse_mix(name: str, args: Sequence[Any], tensors: Sequence[Tensor], on_device: Sequence[Tensor]) -> None:
    """Raise as CUDA does for operands in CPU memory; those without dimensions may be mixed in elementwise."""
    if name in INDEXING:
        allowed = isinstance(args[0], SimulatedTensor)  # indices in CPU memory are uploaded, and counted
        values = args[2] if len(args) > 2 and isinstance(args[2], Tensor) else None
        wrong = [] if allowed else [args[0]]
        if values is not None and not isinstance(values, SimulatedTensor) and values.dim() > 0:
            wrong.append(values)
    else:
        in_memory = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)]
        wrong = [tensor for tensor in in_memory if tensor.dim() > 0 or name in STRICT]
    if wrong:
        raise MixedDevices(
            f"{name} at {_product_line()}: on cuda:0 {[tuple(tensor.shape) for tensor in on_device]}, in CPU "
            f"memory {[tuple(tensor.shape) for tensor in wrong]}"
        )


def _waiting_kind(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return why an operation makes the host wait; None where it does not."""
    if name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        is_filled = name != "aten::index" and args[2].dim() == 0 and len(indices) == 1
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return None if is_filled else "mask"  # `x[mask] = 0` is masked_fill
        return "index" if any(not isinstance(index, SimulatedTensor) for index in indices) else None
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave"
    return WAITING.get(name)


def _with_index(value: Any) -> Any:
    """Return `cuda:0` for what names a CUDA device, and anything else as it is."""
    is_cuda = isinstance(value, (str, torch.device)) and torch.device(value).type == "cuda"
    return DEVICE if is_cuda else value


def _poison(tensor: Tensor) -> None:
    """Fill memory that a download has not reached yet with values that no test expects."""
    if tensor.is_floating_point():
        tensor.fill_(torch.nan)
    elif tensor.dtype == torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).min)


def _to_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[torch.device | None, torch.dtype | None, bool, bool, Any]:
    """Return device, dtype, non_blocking, copy and memory format of a call of `Tensor.to`."""
    device, dtype, flags = kwargs.get("device"), kwargs.get("dtype"), []
    for value in (*args, *([kwargs["other"]] if "other" in kwargs else [])):
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            flags.append(value)
        elif value is not None:
            device = value
    device = None if device is None else torch.device(device)
    non_blocking, copy = (*flags, False, False)[:2]
    return (
        device,
        dtype,
        bool(kwargs.get("non_blocking", non_blocking)),
        bool(kwargs.get("copy", copy)),
        kwargs.get("memory_format"),
    )


def _product_line() -> str:
    """Return the nearest line of the product, or of a test, on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != THIS_FILE and "/site-packages/" not in name and any(part in name for part in PRODUCT):
            cut = max(name.rfind(part) for part in PRODUCT)
            return f"{name[cut + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


class SimulatedEvent:
    """Stands in for `torch.cuda.Event`."""

    def __init__(self, *, enable_timing: bool = False, **_: Any) -> None:
        self._at = 0
        self._is_timed = enable_timing

    def record(self, stream: object = None) -> None:
        self._at = _simulated()._work

    def elapsed_time(self, end: SimulatedEvent) -> float:
        """Return the milliseconds to a later event, as if each operation took one."""
        if not (self._is_timed and end._is_timed and self.query() and end.query()):
            raise RuntimeError("Both events must be created with enable_timing=True, and have completed")
        return float(end._at - self._at)

    def query(self) -> bool:
        return self._at <= _simulated()._finished

    def synchronize(self) -> None:
        """Wait; free where the host has waited for the device since."""
        if not self.query():
            _simulated().wait("event")

    def wait(self, stream: object = None) -> None:
        pass


class SimulatedStream:
    """Stands in for `torch.cuda.Stream`: everything runs in the order of the calls."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = DEVICE

    def wait_stream(self, stream: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def is_capturing(self) -> bool:
        return False

    def record_event(self, event: SimulatedEvent | None = None) -> SimulatedEvent:
        event = event or SimulatedEvent()
        event.record()
        return event

    def synchronize(self) -> None:
        _simulated().wait("synchronize")


def moved_by_ddp(args: Any) -> Any:
    """Return the arguments of a call as `DistributedDataParallel(device_ids=[0])` hands them to its module.

    DDP moves every tensor in tuples, lists and dicts to the device; it does not look into other objects.
    """
    return _recursive_to(args, DEVICE, use_side_stream_for_tensor_copies=False)[0]


def _grouped(tensor_lists: Sequence[Sequence[Tensor | None]], with_indices: bool = False) -> Any:
    """`_group_tensors_by_device_and_dtype`, which is C++ and takes simulated tensors for those of the CPU."""
    groups = torch._C._group_tensors_by_device_and_dtype(tensor_lists, with_indices)  # type: ignore[arg-type]
    return {
        (DEVICE if isinstance(lists[0][0], SimulatedTensor) else device, dtype): (lists, indices)
        for (device, dtype), (lists, indices) in groups.items()
    }


@contextmanager
def running(device: SimulatedCuda) -> Iterator[SimulatedCuda]:
    """Simulate the device in this thread and in those that are started within."""
    compatible = torch._has_compatible_shallow_copy_type
    tensor_to, thread_run, make_tensor, autocast = Tensor.to, threading.Thread.run, torch.tensor, torch.autocast

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], SimulatedTensor):  # C++ would take its device for the CPU
            args = (args[0].device, args[0].dtype, *args[1:])
        # "cuda" without an index would make C++ ask the driver
        return tensor_to(self, *map(_with_index, args), **{name: _with_index(value) for name, value in kwargs.items()})

    def tensor(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        wanted = kwargs.pop("device", None)
        pins = bool(kwargs.pop("pin_memory", False))
        made = make_tensor(data, *args, **kwargs)
        if wanted is not None and torch.device(wanted).type == "cuda":
            device.uploaded(made, non_blocking=False)
            return SimulatedTensor(made)
        return device.pin(made) if pins else made

    def as_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(data.device if device is None else device, data.dtype if dtype is None else dtype)
        return tensor(data, dtype=dtype, device=device)

    def run_thread(self: threading.Thread) -> None:
        with _Mode():
            thread_run(self)

    def pinned(self: Tensor, *_: Any) -> Tensor:
        return self if device.is_pinned(self) else device.pin(self.clone(memory_format=torch.preserve_format))

    def new_autocast(device_type: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def is_compatible(one: Tensor, other: Tensor) -> bool:
        return isinstance(one, SimulatedTensor) == isinstance(other, SimulatedTensor) and compatible(one, other)

    stream = SimulatedStream()
    replaced: list[tuple[Any, str, Any]] = [
        (Tensor, "to", to),
        (Tensor, "cuda", lambda self, *_, **options: self.to(DEVICE, **options)),
        (Tensor, "pin_memory", pinned),
        (Tensor, "is_pinned", lambda self, *_: device.is_pinned(self)),
        (torch, "tensor", tensor),
        (torch, "as_tensor", as_tensor),
        (torch, "autocast", new_autocast),
        (threading.Thread, "run", run_thread),
        (torch, "_has_compatible_shallow_copy_type", is_compatible),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        (torch.cuda, "get_device_name", lambda *_: "simulated CUDA"),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (torch.cuda, "synchronize", lambda *_: device.wait("synchronize")),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.cuda, "max_memory_allocated", lambda *_: 0),
        (torch.cuda, "manual_seed_all", lambda *_: None),
        (torch.cuda, "Event", SimulatedEvent),
        (torch.cuda, "Stream", SimulatedStream),
        (torch.cuda, "current_stream", lambda *_: stream),
        (torch.cuda, "is_current_stream_capturing", lambda: False),
        (torch.cuda, "stream", lambda *_: nullcontext()),
        (torch.accelerator, "current_stream", lambda *_: stream),
        (torch.accelerator, "current_device_index", lambda: 0),
        (torch.accelerator, "synchronize", lambda *_: device.wait("synchronize")),
        (torch.cuda, "device", lambda *_: nullcontext()),
        (torch.cuda, "set_device", lambda *_: None),
        (_foreach_utils, "_foreach_supported_types", [Tensor, SimulatedTensor]),
        (_foreach_utils, "_group_tensors_by_device_and_dtype", _grouped),
        (torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", _grouped),
        (Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped)),
        # an initialised CUDA is left alone: on a machine with a GPU other tests use it
        (torch.cuda, "_lazy_init", torch.cuda._lazy_init if torch.cuda.is_available() else lambda: None),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(_replaced(owner, name, value))
        stack.enter_context(_Mode())
        _current.append(device)
        stack.callback(_current.pop)
        yield device


@contextmanager
def _replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Set an attribute, and afterwards restore it, or remove it where it was inherited."""
    if name in vars(owner):
        with patch.object(owner, name, value):
            yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
