"""What this machine can do at best, and what the process has taken of it."""

import resource
import time
from collections.abc import Callable

import torch


def matmul_rate(device, dtype, size: int | None = None) -> float:
    """FLOP a second of a square matrix product, the best of five."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / best(lambda: a @ a, device)


def copy_rate(device) -> float:
    """Bytes a second, read and written, of a copy within the device's memory, the best of five."""
    source = torch.empty(1 << (30 if device.type == "cuda" else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best(lambda: target.copy_(source), device)


def best(function: Callable, device) -> float:
    times = []
    for _ in range(6):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def peaks(device) -> dict:
    """Largest memory so far, of the process and on the GPU."""
    on_device = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return {
        "peak_device_gb": on_device,
        "peak_host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
