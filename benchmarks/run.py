"""How fast a block is, and what it is spent on: `python -m benchmarks.run [key=value ...]`.

Native and latentmem run in alternation, block by block, in one process, on random weights of any
size; the plain way (upload, concatenate and rotate in every forward) runs beside them as the
baseline. Before them latentmem runs once with its frames decoded beside it, from a standing start.
Prints a table and writes JSON. Times are medians over the blocks of the steady state.

    python -m benchmarks.run size=tinyworld
    python -m benchmarks.run size=1.3b height=480 width=832 device=cuda dtype=bfloat16
    python -m benchmarks.run device=fake
"""

import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.random_models import SIZES, make_model, make_vae
from pipeline.bank.settings import BankSettings
from utils.errors import UserError, run
from utils.files import write_json
from utils.settings import Settings, load_settings, setting, to_dict


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """What to measure"""

    size: str = setting("tinyworld", "sizes of the transformer", choices=SIZES)
    height: int = setting(64, "of the video, in pixels", at_least=16, at_most=16384)
    width: int = setting(96, "of the video, in pixels", at_least=16, at_most=16384)
    blocks: int = setting(20, "blocks of each method that count, after those that fill window and memory", at_least=2)
    steps: int = setting(4, "denoising steps a block", at_least=1, at_most=1000)
    batch_size: int = setting(1, "videos generated together", at_least=1, at_most=4096)
    plain: bool = setting(True, "also run the plain way")
    vae: str = setting("full", "decoder", choices=("full", "tiny"))
    device: str = setting(
        "auto",
        "where to run; fake counts 1.3B's work on a GPU that is not there",
        choices=("auto", "cpu", "cuda", "fake"),
    )
    dtype: str = setting("auto", "of the models", choices=("auto", "float32", "bfloat16"))
    attention_backend: str = setting("native", "one of diffusers' attention backends")
    compile: bool = setting(False, "compile the transformer's blocks")
    seed: int = setting(0, "of all noise", at_least=-(2**63), at_most=2**64 - 1)
    bank: BankSettings = setting(BankSettings, "the frames outside the window")
    output: str = setting("runs/benchmark.json", "where the JSON goes", writes=True)


def main() -> None:
    config = load_settings(BenchmarkConfig, None, sys.argv[1:])
    if config.device == "fake":
        from benchmarks.fake_gpu.report import counted_table

        print(counted_table())
        return
    look(config)
    result = measure(config)
    write_json(config.output, result)
    print(table(result))
    print(f"written to {config.output}")


def look(config: BenchmarkConfig) -> None:
    """Refuse what cannot be measured before any model is made."""
    from benchmarks.inputs import require_output
    from benchmarks.random_models import format_of
    from pipeline.preflight import device_free, find_device, host_free
    from wan.attention import find_backend
    from wan.checkpoint import meta_model
    from wan.params import WanParams

    device = find_device(config.device)
    find_backend(config.attention_backend)
    params = WanParams(**SIZES[config.size])
    multiple = params.patch_size[1] * format_of(config.size).spatial
    for name in ("height", "width"):
        if getattr(config, name) % multiple:
            raise UserError(f"setting '{name}' is {getattr(config, name)}; it must be a multiple of {multiple}")
    weights = sum(parameter.numel() for parameter in meta_model(params).parameters())
    tokens = 21 * (config.height // multiple) * (config.width // multiple)  # of the window
    context = 2 * params.num_layers * tokens * params.dim * config.batch_size
    need = 4 * (weights + context)  # bytes; they are made in float32
    free = host_free() if device.type == "cpu" else device_free(device)
    if need > free:
        raise UserError(
            f"size {config.size} at {config.height} x {config.width} with batch_size {config.batch_size} needs "
            f"{need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; choose smaller ones"
        )
    require_output(config.output)


def measure(config: BenchmarkConfig) -> dict:
    """Run the methods in alternation; returns settings, machine, and figures by method."""
    import torch

    from benchmarks.machine import copy_rate, matmul_rate, peaks
    from pipeline.preflight import find_device

    torch.manual_seed(config.seed)
    device = find_device(config.device)
    auto = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, auto if config.dtype == "auto" else config.dtype)
    machine = {"matmul_tflops": matmul_rate(device, dtype) / 1e12, "copy_gb_s": copy_rate(device) / 1e9}
    model = make_model(config.size, device, dtype)
    model.set_attention_backend(config.attention_backend)
    if config.compile:
        model.compile_blocks()
    whole = end_to_end(config, model, make_vae(config.vae, config.size, device, dtype), device, dtype)
    runs = {name: Run(name, config, device, dtype) for name in ("native", "latentmem")}
    if config.plain:
        runs |= {f"{name}, plain": Run(f"{name}, plain", config, device, dtype, plain=True) for name in tuple(runs)}
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
            **peaks(device),
        },
        "end_to_end": whole,
        "methods": methods,
    }


def end_to_end(config: BenchmarkConfig, model, vae, device, dtype) -> dict:
    """Latentmem with its frames decoded beside it, as `inference.sh` does it, less text encoding and mp4.

    Returns:
        Seconds from a standing start (weights loaded, no forward yet) to the first frame in host memory, frames a
        second of the steady state, and peak memory.
    """
    import torch

    from benchmarks.machine import peaks
    from pipeline.decode import start_decoder, to_uint8
    from utils.background import Background
    from utils.streams import SideStream

    decoder, side, done = start_decoder(vae), SideStream(device, "decode"), []

    def decode(latents, ready) -> None:
        with ready:
            to_uint8(decoder(latents))
        done.append(time.perf_counter())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # measuring the machine took more
    started = time.perf_counter()
    one = Run("latentmem", config, device, dtype)
    one.start(model, staged=False)
    with Background(side.use_device) as background:
        for _ in range(one.warmup + config.blocks):
            block = one.generation.step()
            background.do(decode, block.latents, side.after_now())
    steady = done[-config.blocks - 1 :]
    rate = block_pixels(config) * config.blocks / (steady[-1] - steady[0])
    return {"first_frame_s": done[0] - started, "frames_per_s": rate, **peaks(device)}


class Run:
    """One method's generation, taken a block at a time, with its stages timed."""

    def __init__(self, name: str, config: BenchmarkConfig, device, dtype, plain: bool = False) -> None:
        self.name, self.config, self.device, self.dtype, self.plain = name, config, device, dtype, plain
        self.latentmem = name.startswith("latentmem")
        self.warmup = 10  # window and memory slots are full and the first retrieval is done
        self.seconds: list[float] = []
        self.stages: dict[str, list[float]] = defaultdict(list)  # seconds, a block each
        self.moved: dict[str, list[int]] = defaultdict(list)  # bytes read and written
        self.copied: list[int] = []

    def start(self, model, staged: bool = True) -> None:
        import torch

        from benchmarks.random_models import format_of
        from pipeline.bank.bank import build_bank
        from pipeline.descriptors import AvgPool
        from pipeline.frames import FrameShape
        from pipeline.generation import Generation
        from pipeline.kv_cache import KVCache
        from pipeline.noise import SeededNoise
        from pipeline.pipeline import leaving_frames
        from pipeline.plain import PlainCache
        from pipeline.policies import RetrievedMemory, SlidingWindow
        from pipeline.retrieval import Retrieval
        from pipeline.sampler import FlowSchedule, Sampler

        config, params, batch = self.config, model.params, self.config.batch_size
        latent = format_of(config.size).shape(config.height, config.width)
        policy = RetrievedMemory() if self.latentmem else SlidingWindow()
        frames = policy.block * (self.warmup + config.blocks)
        shape = FrameShape.of(params, *latent[1:], batch)
        index = Retrieval(AvgPool().load(latent, self.device)) if self.latentmem else None
        if self.plain:
            cache = PlainCache(shape, self.device)
        else:
            leaving = leaving_frames(policy, frames)
            bank = build_bank(config.bank, index, shape.dims, leaving, self.dtype, self.device) if index else None
            cache = KVCache(shape, policy, bank, self.device, self.dtype)
        self.cache = cache
        if staged and not self.plain:
            cache.begin = self.timed("assemble the context", cache.begin)
            cache.prefetch = self.timed("fetch", cache.prefetch)
        if staged and index:
            index.select = self.timed("select", index.select)
            index.add = self.timed("describe", index.add)
        schedule = FlowSchedule()
        steps = schedule.steps([1000 - i * 1000 // config.steps for i in range(config.steps)], warp=True)
        text = torch.randn(batch, params.text_len, params.text_dim, device=self.device, dtype=self.dtype)
        self.flops = block_flops(params, shape.tokens(), policy.local_attn_size, config.steps + 1) * batch
        self.generation = Generation(
            model=model,
            policy=policy,
            cache=cache,
            index=index,
            sampler=Sampler(schedule, steps),
            noise=SeededNoise(config.seed, [(i, 0) for i in range(batch)]),
            text=model.encode_text(text),
            shape=(batch, policy.block, *latent),
            device=self.device,
            frames=frames,
        )

    def timed(self, stage: str, function: Callable) -> Callable:
        def wrapped(*arguments, **keywords):
            started, moved = self.now(), self.bytes_moved()
            result = function(*arguments, **keywords)
            self.stages[stage].append(self.now() - started)
            self.moved[stage].append(self.bytes_moved() - moved)
            return result

        return wrapped

    def bytes_moved(self) -> int:
        """Read and written so far in this block: records of the bank, and frames put into the context."""
        if self.plain:
            return 0
        bank = self.cache.bank
        return 2 * (self.cache.placed_bytes + (bank.transfers.bytes if bank else 0))

    def step(self) -> None:
        started = self.now()
        marks = {stage: len(times) for stage, times in self.stages.items()}
        block = self.generation.step()
        self.seconds.append(self.now() - started)
        self.copied.append(block.transfers.bytes)
        for kind in (self.stages, self.moved):  # calls of one block count together
            for stage, values in kind.items():
                values[marks.get(stage, 0) :] = [sum(values[marks.get(stage, 0) :])]

    def now(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def figures(self, machine: dict) -> dict:
        count = self.config.blocks
        block = statistics.median(self.seconds[-count:])
        stages = {}
        for stage, times in self.stages.items():
            seconds, moved = statistics.median(times[-count:]), statistics.median(self.moved[stage][-count:])
            stages[stage] = {"s": seconds}
            if moved:
                of_rate = moved / seconds / 1e9 / machine["copy_gb_s"]
                stages[stage] |= {"moved_mb": moved / 1e6, "of_copy_rate": of_rate}
        rest = block - sum(stage["s"] for stage in stages.values())
        of_rate = self.flops / rest / 1e12 / machine["matmul_tflops"]
        stages["forwards and noise"] = {"s": rest, "tflop": self.flops / 1e12, "of_matmul_rate": of_rate}
        return {
            "block_s": block,
            "quartiles_s": statistics.quantiles(self.seconds[-count:], n=4),
            "frames_per_s": block_pixels(self.config) / block,
            "stages": stages,
            "tflop": self.flops / 1e12,
            "of_matmul_rate": self.flops / block / 1e12 / machine["matmul_tflops"],
            "copied_mb": statistics.median(self.copied[-count:]) / 1e6,
        }


def block_pixels(config: BenchmarkConfig) -> int:
    """Pixel frames of a block of all samples."""
    from benchmarks.random_models import format_of
    from pipeline.policies import SlidingWindow

    return format_of(config.size).block_frames(SlidingWindow().block) * config.batch_size


def block_flops(params, tokens: int, window: int, forwards: int) -> float:
    """Floating-point operations of one block's linear layers and attention; multiply and add count as two."""
    q, kv = 3 * tokens, window * tokens
    attention = 4 * q * (kv + params.text_len) * params.dim
    return forwards * params.num_layers * (linear_flops(params, q) + attention)


def linear_flops(params, q: int) -> int:
    """Those of one layer's matrix products for q tokens; the text's keys and values are made once a prompt."""
    return 2 * q * (6 * params.dim**2 + 2 * params.dim * params.ffn_dim)


def table(result: dict) -> str:
    """The result for a terminal or a page of Markdown."""
    rows = ["| method | block | of native | frames/s | of matmul rate | copied a block |", "|---|---|---|---|---|---|"]
    for name, f in result["methods"].items():
        rows.append(
            f"| {name} | {f['block_s'] * 1e3:.1f} ms | {f['of_native']:.3f} | {f['frames_per_s']:.1f} | "
            f"{f['of_matmul_rate']:.0%} | {f['copied_mb']:.1f} MB |"
        )
    for name, f in result["methods"].items():
        rows.append(f"\n{name}: {', '.join(map(stage_text, f['stages'], f['stages'].values()))}")
    whole, machine = result["end_to_end"], result["machine"]
    device = "" if whole["peak_device_gb"] is None else f"{whole['peak_device_gb']:.2f} GB device, "
    rows.append(
        f"\nend to end, {result['config']['vae']} VAE beside generation: first frame after "
        f"{whole['first_frame_s']:.2f} s, {whole['frames_per_s']:.1f} frames/s, peak {device}"
        f"{whole['peak_host_gb']:.2f} GB host"
    )
    rows.append(
        f"\n{machine['device']}, {machine['threads']} threads, torch {machine['torch']}: matmul "
        f"{machine['matmul_tflops']:.3g} TFLOP/s, copy {machine['copy_gb_s']:.3g} GB/s, "
        f"peak host {machine['peak_host_gb']:.2f} GB"
    )
    return "\n".join(rows)


def stage_text(name: str, stage: dict) -> str:
    """A stage's time, and what it did of this machine's best."""
    text = f"{name} {stage['s'] * 1e3:.2f} ms"
    if "moved_mb" in stage:
        text += f" ({stage['moved_mb']:.1f} MB moved, {stage['of_copy_rate']:.0%} of the copy rate)"
    if "tflop" in stage:
        text += f" ({stage['tflop']:.3g} TFLOP, {stage['of_matmul_rate']:.0%} of the matmul rate)"
    return text


if __name__ == "__main__":
    run(main)
