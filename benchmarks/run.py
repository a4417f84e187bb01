"""How fast a block is, and what it is spent on: `python -m benchmarks.run [key=value ...]`.

Native and latentmem run in alternation, block by block, in one process, on random weights of any
size; the plain way (upload, concatenate and rotate in every forward) runs beside them as the
baseline. Prints a table and writes JSON. Times are medians over the blocks of the steady state.

    python -m benchmarks.run size=tinyworld
    python -m benchmarks.run size=1.3b height=480 width=832 device=cuda dtype=bfloat16
"""

import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.bank import BankConfig
from utils.config import choose, load_settings, to_dict
from utils.errors import run
from utils.files import write_json

SIZES = {  # sizes of the transformer that differ from those of Wan2.1-T2V-1.3B
    "tinyworld": {
        "dim": 128,
        "ffn_dim": 512,
        "num_heads": 4,
        "num_layers": 6,
        "freq_dim": 64,
        "text_dim": 64,
        "text_len": 32,
    },
    "small": {"dim": 384, "ffn_dim": 1536, "num_heads": 6, "num_layers": 6},
    "1.3b": {},
    "14b": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure.

    Attributes:
        size: a name in `SIZES`.
        height, width: of the video, in pixels.
        blocks: blocks of each method that count; they follow those that fill window and memory.
        steps: denoising steps a block.
        plain: also run the plain way.
        device, dtype, attention_backend, compile: as for a run.
        bank: tiers and storage of the memory, as for a run.
        output: where the JSON goes.
    """

    size: str = "tinyworld"
    height: int = 64
    width: int = 96
    blocks: int = 20
    steps: int = 4
    batch_size: int = 1
    plain: bool = True
    device: str = "auto"
    dtype: str = "auto"
    attention_backend: str = "native"
    compile: bool = False
    seed: int = 0
    bank: BankConfig = field(default_factory=BankConfig)
    output: str = "runs/benchmark.json"

    def __post_init__(self) -> None:
        choose("size", self.size, SIZES)


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    config = load_settings(BenchmarkConfig, None, sys.argv[1:])
    result = measure(config)
    write_json(config.output, result)
    print(table(result))
    print(f"written to {config.output}")


def measure(config: BenchmarkConfig) -> dict:
    """Run the methods in alternation; returns settings, machine, and figures by method."""
    import torch

    from pipeline.build import find_device

    torch.manual_seed(config.seed)
    device = find_device(config.device)
    auto = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, auto if config.dtype == "auto" else config.dtype)
    machine = {"matmul_tflops": matmul_rate(device, dtype) / 1e12, "copy_gb_s": copy_rate(device) / 1e9}
    runs = {name: Run(name, config, device, dtype) for name in ("native", "latentmem")}
    if config.plain:
        runs |= {f"{name}, plain": Run(f"{name}, plain", config, device, dtype, plain=True) for name in tuple(runs)}
    model = make_model(config, device, dtype)
    for one in runs.values():
        one.start(model)
    for _ in range(one.warmup + config.blocks):
        for one in runs.values():
            one.step()
    methods = {name: one.figures(machine) for name, one in runs.items()}
    reference = methods["native"]["block_s"]
    for figures in methods.values():
        figures["of_native"] = figures["block_s"] / reference
    return {
        "config": to_dict(config),
        "machine": {
            **machine,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
            "peak_device_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
            "peak_host_gb": peak_host_bytes() / 1e9,
        },
        "methods": methods,
    }


def make_model(config: BenchmarkConfig, device, dtype):
    """A transformer of the size asked for, with random weights."""
    import torch

    from wan.model import CausalWanModel

    with torch.device(device):
        model = CausalWanModel(**SIZES[config.size]).to(dtype).eval().requires_grad_(False)
    model.set_attention_backend(config.attention_backend)
    if config.compile:
        model.compile_repeated_blocks(dynamic=True)
    return model


class Run:
    """One method's generation, taken a block at a time, with its stages timed."""

    def __init__(self, name: str, config: BenchmarkConfig, device, dtype, plain: bool = False) -> None:
        self.name, self.config, self.device, self.dtype, self.plain = name, config, device, dtype, plain
        self.latentmem = name.startswith("latentmem")
        self.warmup = 10  # window and memory slots are full and the first retrieval is done
        self.seconds: list[float] = []
        self.stages: dict[str, list[float]] = defaultdict(list)
        self.copied: list[int] = []

    def start(self, model) -> None:
        import torch

        from benchmarks.plain import PlainCache
        from pipeline.context import Layout, RetrievedMemory, SlidingWindow
        from pipeline.kv_cache import KVCache, ring_frames
        from pipeline.memory import build_memory
        from pipeline.noise import SeededNoise
        from pipeline.retrieval import AvgPool, Retrieval
        from pipeline.rollout import rollout
        from pipeline.sampler import FlowSchedule, Sampler

        config, params = self.config, model.params
        frames = 3 * (self.warmup + config.blocks)
        shape = (params.in_dim, config.height // 8, config.width // 8)
        policy = RetrievedMemory(Layout(12, 1, 6, 5)) if self.latentmem else SlidingWindow(Layout(12, 1))
        tokens = params.tokens_per_frame(*shape[1:])
        retrieval = Retrieval(AvgPool()) if self.latentmem else None
        _, ph, pw = params.patch_size
        if self.plain:
            cache = PlainCache((shape[1] // ph, shape[2] // pw), self.device)
        else:
            kv = (config.batch_size, 2, params.num_layers, tokens, params.num_heads, params.head_dim)
            leaving = frames - ring_frames(policy) - policy.layout.sink
            memory = build_memory(config.bank, retrieval, kv, leaving, self.dtype, self.device) if retrieval else None
            cache = KVCache(params, policy, *shape[1:], config.batch_size, memory, self.device, self.dtype)
            cache.begin = self.timed("assemble the context", cache.begin)
            cache.recall = self.timed("fetch", cache.recall)
        if retrieval:
            retrieval.select = self.timed("select", retrieval.select)
            retrieval.add = self.timed("describe", retrieval.add)
        schedule = FlowSchedule()
        steps = schedule.steps([1000 - i * 1000 // config.steps for i in range(config.steps)], warp=True)
        text = torch.randn(config.batch_size, params.text_len, params.text_dim, device=self.device, dtype=self.dtype)
        noise = SeededNoise(config.seed, [(i, 0) for i in range(config.batch_size)])
        self.flops = block_flops(params, tokens, policy.layout.window, config.steps + 1) * config.batch_size
        self.blocks: Iterator = rollout(
            model, text, policy, cache, retrieval, Sampler(schedule, steps), noise, frames, shape
        )

    def timed(self, stage: str, function: Callable) -> Callable:
        def wrapped(*arguments, **keywords):
            started = self.now()
            result = function(*arguments, **keywords)
            self.stages[stage].append(self.now() - started)
            return result

        return wrapped

    def step(self) -> None:
        started = self.now()
        marks = {stage: len(times) for stage, times in self.stages.items()}
        block = next(self.blocks)
        self.seconds.append(self.now() - started)
        self.copied.append(block.copied_bytes)
        for stage, times in self.stages.items():  # calls of one block count together
            times[marks.get(stage, 0) :] = [sum(times[marks.get(stage, 0) :])]

    def now(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def figures(self, machine: dict) -> dict:
        count = self.config.blocks
        block = statistics.median(self.seconds[-count:])
        stages = {stage: statistics.median(times[-count:]) for stage, times in self.stages.items()}
        stages["forwards and noise"] = block - sum(stages.values())
        return {
            "block_s": block,
            "quartiles_s": statistics.quantiles(self.seconds[-count:], n=4),
            "frames_per_s": 12 * self.config.batch_size / block,
            "stages_s": stages,
            "tflop": self.flops / 1e12,
            "of_matmul_rate": self.flops / block / 1e12 / machine["matmul_tflops"],
            "copied_mb": statistics.median(self.copied[-count:]) / 1e6,
        }


def block_flops(params, tokens: int, window: int, forwards: int) -> float:
    """Floating-point operations of one block's linear layers and attention; multiply and add count as two."""
    q, kv = 3 * tokens, window * tokens
    attention = 4 * q * (kv + params.text_len) * params.dim
    return forwards * params.num_layers * (linear_flops(params, q) + attention)


def linear_flops(params, q: int) -> int:
    """Those of one layer's matrix products for q tokens; the text's keys and values are made once a prompt."""
    return 2 * q * (6 * params.dim**2 + 2 * params.dim * params.ffn_dim)


def matmul_rate(device, dtype, size: int | None = None) -> float:
    """FLOP a second of a square matrix product, the best of five."""
    import torch

    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / best(lambda: a @ a, device)


def copy_rate(device) -> float:
    """Bytes a second, read and written, of a copy within the device's memory, the best of five."""
    import torch

    source = torch.empty(1 << (30 if device.type == "cuda" else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best(lambda: target.copy_(source), device)


def best(function: Callable, device) -> float:
    import torch

    times = []
    for _ in range(6):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def peak_host_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(result: dict) -> str:
    """The result for a terminal or a page of Markdown."""
    rows = ["| method | block | of native | frames/s | of matmul rate | copied a block |", "|---|---|---|---|---|---|"]
    for name, f in result["methods"].items():
        rows.append(
            f"| {name} | {f['block_s'] * 1e3:.1f} ms | {f['of_native']:.3f} | {f['frames_per_s']:.1f} | "
            f"{f['of_matmul_rate']:.0%} | {f['copied_mb']:.1f} MB |"
        )
    for name, f in result["methods"].items():
        stages = ", ".join(f"{stage} {seconds * 1e3:.2f} ms" for stage, seconds in f["stages_s"].items())
        rows.append(f"\n{name}: {stages}")
    machine = result["machine"]
    rows.append(
        f"\n{machine['device']}, {machine['threads']} threads, torch {machine['torch']}: matmul "
        f"{machine['matmul_tflops']:.3g} TFLOP/s, copy {machine['copy_gb_s']:.3g} GB/s, "
        f"peak host {machine['peak_host_gb']:.2f} GB"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    run(main)
