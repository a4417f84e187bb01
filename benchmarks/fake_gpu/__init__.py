"""A GPU that is not there: the engine runs on tensors that only claim to lie on `cuda:0`, and is watched doing so.

On any CPU, without data and at any size, `FakeGPU` finds tensors that meet on different devices, memory that two
streams use in no order, and memory given back while another stream still uses it. It counts kernels, bytes,
operations, copies and the places where the host waits. Nothing is computed, so nothing can be said of values.
"""

from benchmarks.fake_gpu.gpu import FakeGPU
from benchmarks.fake_gpu.tally import Card, Tally

__all__ = ["Card", "FakeGPU", "Tally"]
