"""What stands for torch.cuda while a fake GPU is in use, and for the few functions that ask for a real one."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.fake_gpu.memory import key
from benchmarks.fake_gpu.order import FakeEvent, FakeStream, current
from pipeline import noise
from pipeline.bank import tiers
from utils import streams
from wan import kernels, model, norms
from wan.linear import Linear


@contextmanager
def patched(gpu) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for owner, name, stub in (*_of_cuda(gpu), *_of_tensors(gpu), *_of_kernels(gpu)):
            stack.enter_context(mock.patch.object(owner, name, stub, create=True))
        stack.enter_context(mock.patch.object(streams, "_stream", _named_streams(gpu)))
        for user in (tiers, noise):
            stack.enter_context(mock.patch.object(user, "make_ahead", make_now))
        target = "torch._subclasses.fake_tensor.init_gpu_context"
        stack.enter_context(mock.patch(target, lambda *_: None, create=True))
        yield


def _named_streams(gpu):
    """As `utils.streams` keeps them, one for each purpose, named after it."""
    made: dict[str, FakeStream] = {}

    def stream(device: torch.device, purpose: str, *_: object) -> FakeStream:
        if purpose not in made:
            made[purpose] = FakeStream(gpu, purpose)
        return made[purpose]

    return stream


def make_now(device: torch.device, makers: Sequence[Callable]) -> list[Future]:
    """As `utils.streams.make_ahead`, but in this thread: FakeTensorMode is not made for two."""
    made = []
    for maker in makers:
        future = Future()
        future.set_result(maker())
        made.append(future)
    return made


def _of_cuda(gpu) -> list[tuple]:
    gigabytes = 80 * 10**9
    stubs = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "Stream": lambda device=None, priority=0: FakeStream(gpu, priority=priority),
        "Event": lambda enable_timing=False, **_: FakeEvent(gpu, enable_timing),
        "stream": lambda stream: current(gpu, stream),
        "current_stream": lambda device=None: gpu.stream(),
        "default_stream": lambda device=None: gpu.default,
        "synchronize": lambda device=None: gpu.host_waits("torch.cuda.synchronize", gpu.order.all_queued()),
        "mem_get_info": lambda device=None: (gigabytes, gigabytes),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: gpu.memory.live,
        "max_memory_allocated": lambda device=None: gpu.memory.peak,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: f"fake {gpu.card.name}",
    }
    return [(torch.cuda, name, stub) for name, stub in stubs.items()]


def _of_tensors(gpu) -> list[tuple]:
    def pin(self, device=None):
        with gpu.lock:
            gpu.is_quiet = True
            out = self if gpu.memory.is_pinned(self) else self.clone()
            gpu.is_quiet = False
        gpu.memory.pin(out)
        return out

    def record_stream(self, stream):
        gpu.memory.recorded[key(self)].add(stream.name)

    def numpy(self, **_):
        if self.device.type != "cpu":
            raise TypeError("can't convert a cuda tensor to numpy")
        gpu.touch_on_host([], [self])  # whoever asks for it may read a file into it
        return np.zeros(self.shape, str(self.dtype).removeprefix("torch."))

    def tolist(self):
        if self.device.type == "cuda":
            self = self.cpu()
        gpu.touch_on_host([self], [])
        return np.zeros(self.shape, "float64" if self.dtype.is_floating_point else "int64").tolist()

    def deepcopy(self, memo):  # PyTorch's own copies the bytes of a storage, which has none
        memo[id(self)] = self.clone()
        return memo[id(self)]

    def swap(a, b):  # as torch.utils.swap_tensors, which refuses what a weak reference names
        a.__dict__, b.__dict__ = b.__dict__, a.__dict__
        torch._C._swap_tensor_impl(a, b)

    getter = torch._C.TensorBase.data

    def set_data(self, new):  # a FakeTensor keeps its device beside its data
        is_parameter = self.__dict__.get("_is_param")
        swap(self, new.detach())
        if is_parameter is not None:
            self.__dict__["_is_param"] = is_parameter

    return [
        (torch.Tensor, "pin_memory", pin),
        (torch.Tensor, "is_pinned", lambda self, device=None: gpu.memory.is_pinned(self)),
        (torch.Tensor, "record_stream", record_stream),
        (torch.Tensor, "numpy", numpy),
        (torch.Tensor, "__deepcopy__", deepcopy),
        (FakeTensor, "tolist", tolist),
        (FakeTensor, "data", property(lambda self: getter.__get__(self), set_data)),
        (torch.utils, "swap_tensors", swap),
    ]


def _of_kernels(gpu) -> list[tuple]:
    """Functions that are one kernel each on a GPU, and several operations elsewhere."""
    plain_attention, plain_rms_norm, plain_interpolate = F.scaled_dot_product_attention, F.rms_norm, F.interpolate

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if query.device.type != "cuda":
            return plain_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        for x in (key, value):
            if (x.device, x.dtype) != (query.device, query.dtype):
                raise RuntimeError(f"attention of {query.device} {query.dtype} with {x.device} {x.dtype}")
        batch, heads, tokens, head_dim = query.shape
        out = torch.empty_like(query)
        flop = 4 * batch * heads * tokens * key.shape[2] * head_dim
        gpu.kernel("attention", flop, [query, key, value], [out])
        return out

    def rms_norm(x, shape, weight=None, eps=None):
        if x.device.type != "cuda":
            return plain_rms_norm(x, shape, weight, eps)
        if weight is not None and weight.device != x.device:
            raise RuntimeError(f"rms_norm of {x.device} with a weight on {weight.device}")
        dtype = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
        x = x.contiguous()  # as PyTorch's kernel has it
        out = torch.empty_like(x, dtype=dtype)
        gpu.kernel("elementwise", 0, [x], [out])
        return out

    def interpolate(input, size=None, scale_factor=None, *how, **more):
        if input.device.type != "cuda":
            return plain_interpolate(input, size, scale_factor, *how, **more)
        factors = scale_factor if isinstance(scale_factor, Sequence) else [scale_factor] * (input.dim() - 2)
        sizes = [int(length * factor) for length, factor in zip(input.shape[2:], factors, strict=True)]
        out = torch.empty((*input.shape[:2], *sizes), dtype=input.dtype, device=input.device)
        gpu.kernel("elementwise", 0, [input], [out])
        return out

    def rotate_write(q, k, v, table, keys, values):
        for x in (v, table, keys, values):
            if x.device != k.device:
                raise RuntimeError(f"rotation of {k.device} with {x.device}")
        if q is None:
            gpu.kernel("elementwise", 0, [k, v, table], [keys, values])
            return None
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        gpu.kernel("elementwise", 0, [q, k, v, table], [out, keys, values])
        return out

    def norm_rows(x, out, weight, eps, bias=None, y=None, gate=None, total=None, silu=False, plus=None):
        vectors = [vector for vector in (weight, bias, gate, plus) if vector is not None]
        for vector in vectors:
            if vector.device != x.device:
                raise RuntimeError(f"norm of {x.device} with {vector.device}")
        if y is None:
            gpu.kernel("elementwise", 0, [x, *vectors], [out])
        else:
            gpu.kernel("elementwise", 0, [x, y, *vectors], [out, total])

    def add_rows(out, x, plus):
        gpu.kernel("elementwise", 0, [out, x, plus], [out])

    def addmm_activation(bias, x, weight, use_gelu):
        out = torch.empty(x.shape[0], weight.shape[1], dtype=x.dtype, device=x.device)
        gpu.kernel("gemm", 2 * x.shape[0] * weight.numel(), [bias, x, weight], [out])
        return out

    return [
        (F, "scaled_dot_product_attention", attention),
        (F, "rms_norm", rms_norm),
        (F, "interpolate", interpolate),
        (kernels, "is_fast", lambda x: x.device.type == "cuda"),
        (kernels, "rotate_write", rotate_write),
        (norms, "is_fast", lambda x: x.device.type == "cuda"),
        (norms, "norm_rows", norm_rows),
        (norms, "add_rows", add_rows),
        (torch, "_addmm_activation", addmm_activation),
        (model, "is_plain", lambda linear: type(linear) is Linear),  # whose weights are FakeTensors
    ]


class Indexing(TorchFunctionMode):
    """Basic indexing by aten's operations: Tensor's own asks for a device guard, which a CPU build has not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not (args and isinstance(args[0], FakeTensor)):
            return func(*args, **kwargs)
        if func is torch.Tensor.__getitem__:
            return indexed(args[0], args[1])
        if func is torch.Tensor.__setitem__:
            view, value = indexed(args[0], args[1]), args[2]
            if not isinstance(value, torch.Tensor):
                value = torch.full((), value, dtype=view.dtype, device=view.device)
            torch.ops.aten.copy_(view, value)
            return None
        if func is torch.Tensor.copy_:
            return torch.ops.aten.copy_(*args, **kwargs)
        if func is torch.Tensor.contiguous:
            if args[0].is_contiguous():
                return args[0]
            return torch.ops.aten.clone(args[0], memory_format=torch.contiguous_format)
        return func(*args, **kwargs)


def indexed(x: torch.Tensor, index) -> torch.Tensor:
    """`x[index]` for numbers, slices, None, an ellipsis and lists."""
    index = index if isinstance(index, tuple) else (index,)
    dim = 0
    for place, one in enumerate(index):
        if one is Ellipsis:
            after = sum(other is not None for other in index[place + 1 :])
            dim = x.dim() - after
        elif one is None:
            x, dim = torch.ops.aten.unsqueeze(x, dim), dim + 1
        elif isinstance(one, slice):
            if one != slice(None):
                x = torch.ops.aten.slice(x, dim, one.start, one.stop, one.step or 1)
            dim += 1
        elif isinstance(one, int):
            x = torch.ops.aten.select(x, dim, one)
        else:
            places = torch.as_tensor(one, device=x.device)
            x, dim = torch.ops.aten.index(x, [None] * dim + [places]), dim + 1
    return torch.ops.aten.alias(x)
