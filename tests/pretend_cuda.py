"""A pretended GPU: tensors that say they are on cuda:0 and compute on the CPU. Needs no CUDA build.

    with PretendCuda() as gpu:
        to_gpu(backbone.denoiser)
        run()
    gpu.events  # every copy between host and device and every wait, with the line that caused it

What a real GPU would refuse is refused: an operation on tensors of two devices (but for 0-dim numbers of the host), a
host tensor indexed by a device's, .numpy() of a device's. Values are real, and can be compared with the CPU's bit for
bit. A copy to the host that is not waited for arrives when an event that was recorded after it is synchronized: until
then there are other values.
Run under `torch.no_grad`: tensors of a subclass break under `inference_mode`.
"""

import sys
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "bool",
    aten._unique2.default: "unique",
    aten.linalg_solve.default: "linalg_solve reads whether it failed",
    aten._linalg_solve_ex.default: "linalg_solve reads whether it failed",
}
WAITING_METHODS = ("nonzero", "masked_select", "equal", "unique", "argwhere")
SCALARS = ("item", "tolist", "__float__", "__bool__", "__int__", "__index__")
FACTORIES = (torch.tensor, torch.as_tensor, torch.asarray)
DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
_current: "PretendCuda | None" = None


class DeviceMix(RuntimeError):
    """Tensors of two devices met in one operation."""


@dataclass(frozen=True)
class Event:
    """kind: wait, to device, to host, cast or event (one was waited for); what: the operation (a `pinned copy` makes
    nobody wait); where: the line of this repository."""

    kind: str
    what: str
    where: str


class OnGPU(torch.Tensor):
    """A tensor of the pretended GPU; `host` holds its values."""

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=CUDA
        )

    def __init__(self, host):
        self.host = host

    def __repr__(self, **_):
        return f"OnGPU({self.host!r})"

    def __deepcopy__(self, memo):
        return OnGPU(self.host.clone())

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


def to_gpu(module):
    """Move the parameters and buffers of `module` to the pretended GPU, in place."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(OnGPU(value.detach()), requires_grad=False)
        for name, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[name] = OnGPU(value)
    return module


def _unwrap(value):
    return value.host if isinstance(value, OnGPU) else value


def _wrap(value):
    return OnGPU(value) if isinstance(value, torch.Tensor) and not isinstance(value, OnGPU) else value


def _wrap_new(out, inputs):
    """The results as the device's; what was changed in place stays the very object that it was."""

    def one(value):
        same = [x for x in inputs if x.host is value]
        return same[0] if same else _wrap(value)

    return tree_map(one, out)


def _is_cuda(device):
    return device is not None and torch.device(device).type == "cuda"


def _note(kind, what):
    if _current is not None:
        _current.events.append(Event(kind, what, _where()))


def _where():
    """The innermost line of this repository's packages, and of diffusers below it."""
    below, frame = "", sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "site-packages" not in file and ("/postdiff/" in file or "/pipelines/" in file):
            return f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno}{below}"
        if not below and "site-packages/diffusers" in file:
            below = f" <- diffusers/{file.split('/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return f"?{below}"


def _crossing(source, to, pinned=False):
    if to != isinstance(source, OnGPU):
        _note("to device" if to else "to host", "pinned copy" if pinned else "copy")


class _Event:
    """torch.cuda.Event: time passes by one second an event that is recorded."""

    def __init__(self, enable_timing=False):
        self.timing = enable_timing

    def record(self, stream):
        assert stream == CUDA
        _current.recorded += 1
        self.at, self.arrives = _current.recorded, len(_current.underway)

    def synchronize(self):
        _note("event", f"event {self.at}")
        for there, values in _current.underway[: self.arrives]:
            there.copy_(values)

    def elapsed_time(self, later):
        assert self.timing
        assert later.timing
        return 1000.0 * (later.at - self.at)


def _dispatch(func, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, OnGPU)]
    here = [x for x in tensors if not isinstance(x, OnGPU) and x.dim() > 0]
    if func is aten._to_copy.default:
        to = _is_cuda(kwargs["device"]) if kwargs.get("device") is not None else isinstance(args[0], OnGPU)
        out = func(_unwrap(args[0]), **{name: value for name, value in kwargs.items() if name != "device"})
        _crossing(args[0], to)
        return OnGPU(out) if to else out
    if func is aten.copy_.default:
        _crossing(args[1], isinstance(args[0], OnGPU))
        _unwrap(args[0]).copy_(_unwrap(args[1]))
        return args[0]
    if func in WAITS:
        _note("wait", WAITS[func])
    if func is aten.index.Tensor and any(isinstance(i, OnGPU) and i.dtype == torch.bool for i in args[1] or []):
        _note("wait", "boolean index")
    if there and here:
        if not (func in (aten.index.Tensor, aten.index_put_.default) and isinstance(args[0], OnGPU)):
            raise DeviceMix(f"{func}: {[(tuple(x.shape), x.dtype) for x in here]} on cpu, the others on cuda:0")
        _note("to device", "host index of a device tensor")
    to = _is_cuda(kwargs["device"]) if "device" in kwargs else bool(there)
    kwargs = {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs
    out = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    return _wrap_new(out, there) if to else out


class PretendCuda(TorchFunctionMode):
    """While it is entered, device="cuda" is the pretended GPU, and `events` fills."""

    def __init__(self):
        super().__init__()
        self.events: list[Event] = []
        self.recorded = 0
        self.underway: list[tuple[torch.Tensor, torch.Tensor]] = []  # copies to the host, and what arrives
        self.cuda = patch.multiple(torch.cuda, Event=_Event, current_stream=lambda device: device)

    def __enter__(self):
        global _current
        _current = self
        self.cuda.start()
        return super().__enter__()

    def __exit__(self, *error):
        global _current
        _current = None
        self.cuda.stop()
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, x = kwargs or {}, getattr(func, "__name__", ""), args[0] if args else None
        special = self._special(func, name, x, args, kwargs)
        if special is not NotImplemented:
            return special
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        there = [value for value in tensors if isinstance(value, OnGPU)]
        here = [value for value in tensors if not isinstance(value, OnGPU) and value.dim() > 0]
        if there and here and name not in ("__getitem__", "__setitem__", "copy_"):
            raise DeviceMix(f"{name}: {[(tuple(v.shape), v.dtype) for v in here]} on cpu, the others on cuda:0")
        to = isinstance(x, OnGPU) or (bool(there) and name != "__getitem__")
        if kwargs.get("device") is not None:
            to = _is_cuda(kwargs["device"])
            kwargs = {**kwargs, "device": "cpu"}
            if to and func in FACTORIES and not there:
                _note("to device", name)
        out = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
        return _wrap_new(out, there) if to else out

    def _special(self, func, name, x, args, kwargs):
        """Attributes, moves and reads, which are more than arithmetic on the values; else NotImplemented."""
        if name == "__get__" and isinstance(x, OnGPU):
            which = getattr(getattr(func, "__self__", None), "__name__", "")
            known = {"device": CUDA, "is_cuda": True, "is_cpu": False}
            return known[which] if which in known else _wrap(func(x.host))
        if name == "to" and isinstance(x, torch.Tensor):
            return self._to(x, *args[1:], **kwargs)
        if name == "pin_memory":
            pinned = x.clone()
            pinned.pinned = True
            return pinned
        if name in ("cuda", "cpu") and isinstance(x, torch.Tensor):
            return self._to(x, CUDA if name == "cuda" else "cpu")
        if name in DTYPES and isinstance(x, OnGPU):
            return self._to(x, DTYPES[name])
        if name in ("numpy", "__array__") and isinstance(x, OnGPU):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in SCALARS and isinstance(x, OnGPU):
            _note("wait", name)
            return getattr(x.host, name)()
        if name in ("__getitem__", "__setitem__"):
            self._index(x, args[1])
        elif name == "copy_" and isinstance(x, torch.Tensor):
            _crossing(args[1], isinstance(x, OnGPU))
            _unwrap(x).copy_(_unwrap(args[1]))
            return x
        elif (name in WAITING_METHODS and isinstance(x, OnGPU)) or (
            name == "repeat_interleave" and len(args) > 1 and isinstance(args[1], OnGPU)
        ):
            _note("wait", name)
        elif name in ("solve", "linalg_solve") and isinstance(x, OnGPU):
            _note("wait", "linalg_solve reads whether it failed")
        return NotImplemented

    def _index(self, x, index):
        for i in index if isinstance(index, tuple) else (index,):
            if isinstance(i, OnGPU):
                if i.dtype == torch.bool or i.dim() == 0:
                    _note("wait", "index by a device tensor of 0 dimensions or of booleans")
                elif not isinstance(x, OnGPU):
                    raise DeviceMix("a host tensor is indexed by a device's")
            elif isinstance(x, OnGPU) and (isinstance(i, list) or (isinstance(i, torch.Tensor) and i.dim())):
                _note("to device", "host index")

    def _to(self, x, *args, **kwargs):
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for value in args:
            if isinstance(value, (torch.device, str)):
                device = value
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
        to = isinstance(x, OnGPU) if device is None else _is_cuda(device)
        dtype = dtype or x.dtype
        if to == isinstance(x, OnGPU) and dtype == x.dtype:
            return x
        pinned = kwargs.get("non_blocking", False) and (not to or hasattr(x, "pinned"))
        _crossing(x, to, pinned)
        if pinned and not to:
            assert dtype == x.dtype
            there = torch.full_like(x.host, 77)
            self.underway.append((there, x.host.clone()))
            return there
        if to and isinstance(x, OnGPU) and dtype != x.dtype:
            _note("cast", f"{x.dtype} to {dtype}")
        out = _unwrap(x).to(dtype) if dtype != x.dtype else _unwrap(x).clone()
        return OnGPU(out) if to else out
