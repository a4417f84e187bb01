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
    cuda_graphs: bool = setting(True, "on a GPU, queue the denoising forwards of a full window as one graph")
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
    from benchmarks.rollout import PLAIN
    from pipeline.preflight import find_device
    from utils.tensors import keep_freed_memory

    torch.manual_seed(config.seed)
    device = find_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    auto = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, auto if config.dtype == "auto" else config.dtype)
    machine = {"matmul_tflops": matmul_rate(device, dtype) / 1e12, "copy_gb_s": copy_rate(device) / 1e9}
    model = make_model(config.size, device, dtype)
    model.set_attention_backend(config.attention_backend)
    if config.compile:
        model.compile_blocks()
    whole = end_to_end(config, model, make_vae(config.vae, config.size, device, dtype), device, dtype)
    names = ["native", "latentmem"]
    if config.plain:
        names += [f"native{PLAIN}", f"latentmem{PLAIN}"]
    methods = measure_blocks(names, config, machine, model, device, dtype)
    for name, stages in measure_stages(names[:2], config, machine, model, device, dtype).items():
        methods[name]["stages"] = stages
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
    from benchmarks.rollout import WARMUP, Rollout
    from pipeline.decode import DecodeThread, start_decoder, to_uint8

    decoder, done = start_decoder(vae), []

    def decode(block, ready) -> None:
        with ready:
            to_uint8(decoder(block.latents))
        done.append(time.perf_counter())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # measuring the machine took more
    started = time.perf_counter()
    blocks = WARMUP + config.blocks
    rollout = Rollout("latentmem", blocks, config, model, device, dtype)
    with DecodeThread(device, in_turn=False) as thread:
        for _ in range(blocks):
            thread.take(decode, rollout.step())
    steady = done[-config.blocks - 1 :]
    rate = block_pixels(config) * config.blocks / (steady[-1] - steady[0])
    return {"first_frame_s": done[0] - started, "frames_per_s": rate, **peaks(device)}


def measure_blocks(names: list[str], config: BenchmarkConfig, machine: dict, model, device, dtype) -> dict:
    """Figures of each method's blocks, which run as they do without a benchmark."""
    from benchmarks.rollout import WARMUP, Rollout
    from benchmarks.timing import Turns

    turns = Turns(config.blocks, device)
    rollouts = {name: Rollout(name, WARMUP + turns.blocks, config, model, device, dtype) for name in names}
    for rollout in rollouts.values():
        for _ in range(WARMUP):
            rollout.step()
    seconds = turns.take(rollouts)
    reference = statistics.median(seconds["native"])
    methods = {}
    for name, rollout in rollouts.items():
        block = statistics.median(seconds[name])
        methods[name] = {
            "block_s": block,
            "quartiles_s": statistics.quantiles(seconds[name], n=4),
            "frames_per_s": block_pixels(config) / block,
            "tflop": rollout.flops / 1e12,
            "of_matmul_rate": rollout.flops / block / 1e12 / machine["matmul_tflops"],
            "copied_mb": statistics.median(rollout.copied[-config.blocks :]) / 1e6,
            "of_native": block / reference,
        }
    return methods


def measure_stages(names: list[str], config: BenchmarkConfig, machine: dict, model, device, dtype) -> dict:
    """What each method's blocks are spent on, by stage, from a run of its own."""
    from benchmarks.rollout import WARMUP, Rollout
    from benchmarks.timing import Stages

    found = {}
    for name in names:
        blocks = WARMUP + config.blocks
        stages = Stages(Rollout(name, blocks, config, model, device, dtype))
        for _ in range(blocks):
            stages.step()
        found[name] = stages.figures(config.blocks, machine)
    return found


def block_pixels(config: BenchmarkConfig) -> int:
    """Pixel frames of a block of all samples."""
    from benchmarks.random_models import format_of
    from pipeline.policies import SlidingWindow

    return format_of(config.size).block_frames(SlidingWindow().block) * config.batch_size


def table(result: dict) -> str:
    """The result for a terminal or a page of Markdown."""
    rows = ["| method | block | of native | frames/s | of matmul rate | copied a block |", "|---|---|---|---|---|---|"]
    for name, f in result["methods"].items():
        rows.append(
            f"| {name} | {f['block_s'] * 1e3:.1f} ms | {f['of_native']:.3f} | {f['frames_per_s']:.1f} | "
            f"{f['of_matmul_rate']:.0%} | {f['copied_mb']:.1f} MB |"
        )
    for name, f in result["methods"].items():
        if "stages" in f:
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
