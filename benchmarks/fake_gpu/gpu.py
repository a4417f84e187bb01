"""The dispatch mode that watches every operation of PyTorch on tensors that claim to lie on a GPU."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.fake_gpu.memory import HOST, Memory, key
from benchmarks.fake_gpu.order import FakeStream, Moment, Order
from benchmarks.fake_gpu.tally import Card, Tally, moved_bytes

ROOT = Path(__file__).parents[2]
HERE = str(Path(__file__).parent)
NO_KERNEL = {  # views, and memory that nothing is written to
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze",
    "squeeze", "detach", "alias", "split", "split_with_sizes", "unbind", "as_strided", "lift_fresh", "chunk",
    "diagonal", "unfold", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "resize_",
    "dropout", "view_as_complex", "view_as_real", "_reshape_alias",
}  # fmt: skip
SCALARS = ("_local_scalar_dense", "is_nonzero", "equal")  # a number for the host
WAITING = ("nonzero", "masked_select", "_unique2")  # their shape depends on values: the host waits for it
OVERWRITES = ("copy_", "fill_", "zero_")  # writes without reading what was there


class FakeGPU(TorchDispatchMode):
    """Use it as `with FakeGPU().installed() as gpu:`; within, `torch.device("cuda")` works.

    Attributes:
        tally: counts since the last `take`.
        memory: who uses what when; `faults` are its.
    """

    def __init__(self, card: Card | None = None, watch_memory: bool = True) -> None:
        super().__init__()
        self.card, self.watch_memory = card or Card(), watch_memory
        self.device = torch.device("cuda", 0)
        self.order = Order()
        self.memory = Memory(self.order)
        self.tally = Tally()
        self.lock = threading.RLock()
        self.numbers = count(1)
        self.names: list[str] = []  # for the streams made next
        self.default = FakeStream(self, "main")
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.is_quiet = False

    @property
    def faults(self) -> list[str]:
        return list(self.memory.faults)

    @contextmanager
    def installed(self) -> Iterator["FakeGPU"]:
        from benchmarks.fake_gpu.patches import Indexing, patched

        with ExitStack() as stack:
            # Without a device guard for CUDA, as a CPU build of PyTorch is, autograd's kernels cannot run.
            stack.enter_context(torch.inference_mode())
            stack.enter_context(self.fake)
            stack.enter_context(patched(self))
            stack.enter_context(self)
            stack.enter_context(Indexing())
            yield self

    @contextmanager
    def in_thread(self, host: Moment) -> Iterator[None]:
        """What a second thread works in whose starter had waited for `host`."""
        from benchmarks.fake_gpu.patches import Indexing

        self.order.inherit(host)
        torch._C._set_only_lift_cpu_tensors(True)  # as FakeTensorMode has it where there is no GPU
        with torch.inference_mode(), self.fake, self, Indexing():
            yield

    def take(self) -> Tally:
        """The counts so far; counting starts anew."""
        taken, self.tally = self.tally, Tally()
        return taken

    def stream(self) -> FakeStream:
        """This thread's current stream."""
        return getattr(self.order.threads, "stream", self.default)

    def next_stream_name(self) -> str:
        return f"stream {next(self.numbers)}"

    def host_waits(self, what: str, moment: Moment | None = None) -> None:
        """The host waits for a moment; None: for the current stream, as it does for what a copy or a value needs."""
        self.tally.waits[what, self.site()] += 1
        self.order.host_waits(moment if moment is not None else self.order.snapshot(self.stream().name))

    def site(self) -> str:
        """The project's line that is running, or a library's if none of the project called it."""
        frame = sys._getframe(1)
        found = "?"
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(str(ROOT)) and not name.startswith(HERE) and "site-packages" not in name:
                return f"{name[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
            if found == "?" and ("diffusers/" in name or "transformers/" in name):
                found = f"{name.split('site-packages/')[-1]}:{frame.f_lineno}"
            frame = frame.f_back
        return found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in SCALARS and isinstance(args[0], torch.Tensor):
            if args[0].device.type == "cuda":
                self.host_waits(f"{name} of a tensor on the GPU")
            if isinstance(args[0], FakeTensor):
                return self._no_value(name, args[0])
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, FakeTensor):
                x.constant = None  # FakeTensorMode would compute with it in earnest
        if func._schema.name.startswith("aten") and name not in NO_KERNEL and func._can_decompose():
            with self:  # in inference mode operations that are made of others come whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        pin = kwargs.get("pin_memory", False)
        if pin:
            kwargs = {**kwargs, "pin_memory": False}
        with self.lock:  # FakeTensorMode is not made for two threads
            out = func(*args, **kwargs)
            if not self.is_quiet and func._schema.name.startswith(("aten", "prims")):
                self._note(func, name, args, kwargs, out, pin)
        return out

    @staticmethod
    def _no_value(name: str, x: torch.Tensor):
        if name == "equal":
            return False
        return 0.0 if x.dtype.is_floating_point else 0

    def _note(self, func, name: str, args, kwargs, out, pin: bool) -> None:
        inputs = _tensors((args, kwargs))
        outputs = _tensors(out)
        if pin:
            for x in outputs:
                self.memory.pin(x)
        mutated = [args[0]] if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor) else []
        if "out" in kwargs:
            mutated = _tensors(kwargs["out"])
        if not any(x.device.type == "cuda" for x in inputs + outputs):
            if name not in NO_KERNEL:
                self._note_host(inputs, mutated)
            return
        site = self.site()
        self._note_new(inputs, outputs, site)
        if name in NO_KERNEL or (name in ("contiguous", "to", "_to_copy") and _is_same(inputs, outputs)):
            return
        if self._note_copy(name, args, kwargs, outputs, site):
            return
        reads = inputs
        if mutated and name.startswith(OVERWRITES):
            reads = [x for x in inputs if not any(x is written for written in mutated)]
        writes = mutated or outputs
        kind, flop = "elementwise", 0
        if func._overloadpacket in flop_registry:
            flop = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            kind = "convolution" if "conv" in name else "gemm"
        self.kernel(kind, flop, reads, writes, site)
        if name in WAITING:
            self.host_waits(name)

    def kernel(self, kind: str, flop: int, reads: Sequence, writes: Sequence, site: str | None = None) -> None:
        """Queue one kernel on the current stream."""
        site, stream = site or self.site(), self.stream().name
        on_gpu = [[x for x in xs if x.device.type == "cuda"] for xs in (reads, writes)]
        moved = sum(moved_bytes(x) for xs in on_gpu for x in xs)
        self.tally.kernel(self.card, stream, site, kind, flop, moved)
        self._touch(stream, *on_gpu, site)

    def _note_new(self, inputs: list, outputs: list, site: str) -> None:
        known = {key(x) for x in inputs}
        for x in outputs:
            if x.device.type == "cuda" and key(x) not in known:
                size = self.memory.make(x, self.stream().name, site)
                self.tally.made += bool(size)
                self.tally.made_bytes += size

    def _note_copy(self, name: str, args, kwargs, outputs: list, site: str) -> bool:
        """Count a copy between host and device, if it is one."""
        if name == "copy_":
            target, source = args[0], args[1]
            asked = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        elif name == "_to_copy":
            target, source = outputs[0], args[0]
            asked = kwargs.get("non_blocking", False)
        else:
            return False
        if source.device.type == target.device.type:
            return False
        stream = self.stream().name
        to_device = target.device.type == "cuda"
        is_pinned = self.memory.is_pinned(source if to_device else target)
        how = "blocking"
        if asked:
            how = "beside the host" if is_pinned else "staged"
        size = target.numel() * min(source.dtype.itemsize, target.dtype.itemsize)
        direction = "H2D" if to_device else "D2H"
        self.tally.copy(direction, stream, how, size, site)
        self._touch(stream, [source], [target], site)
        if how == "blocking" or (how == "staged" and not to_device):
            self.host_waits(f"{direction} copy of {'pinned' if is_pinned else 'pageable'} memory")
        return True

    def _note_host(self, inputs: list, mutated: list) -> None:
        """The host itself reads or writes: only pinned memory is shared with the GPU."""
        if not any(self.memory.is_pinned(x) for x in inputs):
            return
        reads = [x for x in inputs if not any(x is written for written in mutated)]
        self.touch_on_host(reads, mutated)

    def touch_on_host(self, reads: Sequence, writes: Sequence) -> None:
        if self.watch_memory:
            site, moment = self.site(), {**self.order.host(), HOST: 0}
            for x in reads:
                self.memory.use(HOST, moment, x, False, site)
            for x in writes:
                self.memory.use(HOST, moment, x, True, site)

    def _touch(self, stream: str, reads: Sequence, writes: Sequence, site: str) -> None:
        moment = self.order.advance(stream)
        if self.watch_memory:
            for x in reads:
                self.memory.use(stream, moment, x, False, site)
            for x in writes:
                self.memory.use(stream, moment, x, True, site)


def _tensors(tree) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def _is_same(inputs: list, outputs: list) -> bool:
    return bool(inputs) and bool(outputs) and key(inputs[0]) == key(outputs[0])
