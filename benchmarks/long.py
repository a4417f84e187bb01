"""A very long video in a fixed budget: `python -m benchmarks.long [key=value ...]`.

Generates the same latents with an unbounded memory, with small tiers (device, host, disk), and with
a bounded bank; records resident memory and seconds a block, says where the latents agree, and draws
both curves. Each run is a process of its own, so that its memory is its own.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from utils.errors import UserError, run
from utils.figure import new_figure, save
from utils.files import require_writable, write_json
from utils.launch import run_module
from utils.settings import Settings, load_settings, setting
from utils.table import markdown

RUNS = {
    "unbounded": {},
    "tiers": {"device_gb": 0.002, "host_gb": 0.01, "disk_gb": 2.0},
    "capacity 200": {"capacity": 200, "eviction": "redundancy"},
}
SKIPPED = 20  # blocks at the start that are not timed: window and memory are not full yet
SHORTEST = 2 * SKIPPED + 2  # blocks


@dataclass(frozen=True, kw_only=True)
class LongConfig(Settings):
    """What to run"""

    config: str = setting("configs/tinyworld_latentmem.yaml", "a run with memory", reads=True)
    frames: int = setting(4000, "latent frames", at_least=1, at_most=10**6)
    only: str | None = setting(None, "one of the memories (internal)", choices=RUNS)
    output: str = setting("runs/long", "where the results go", writes=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 3 * SHORTEST:
            raise UserError(
                f"frames is {self.frames}; both halves of a run need blocks to time, use {3 * SHORTEST} or more"
            )


def main() -> None:
    config = load_settings(LongConfig, None, sys.argv[1:])
    if config.only:
        generate(config)
        return
    look(config)
    for name in RUNS:
        run_module("benchmarks.long", *sys.argv[1:], f"only={name}")
    results = {name: json.loads(path(config, name).read_text()) for name in RUNS}
    report(results)
    draw(results, Path(config.output) / "long.png")


def look(config: LongConfig) -> None:
    """Refuse what a run could not be made of, before the first of them starts."""
    from benchmarks.inputs import first_prompt
    from pipeline.config import load_config
    from pipeline.preflight import preflight

    overrides = {"num_output_frames": config.frames // 3 * 3}
    first_prompt(load_config(config.config, overrides))
    for bank in RUNS.values():
        preflight(load_config(config.config, {**overrides, "bank": bank}))
    require_writable(config.output)


def path(config: LongConfig, name: str) -> Path:
    return Path(config.output) / f"{name.replace(' ', '_')}.json"


def generate(config: LongConfig) -> None:
    """One run: seconds, resident bytes and a digest of the latents for every block."""
    import hashlib

    import psutil

    from benchmarks.inputs import first_prompt
    from pipeline import load

    frames = config.frames // 3 * 3
    pipeline = load(config.config, num_output_frames=frames, bank=RUNS[config.only])
    prompt = first_prompt(pipeline.config)
    process = psutil.Process()
    blocks = []
    started = time.perf_counter()
    for block in pipeline.blocks(prompt):
        seconds = time.perf_counter() - started
        resident = process.memory_info().rss
        blocks.append(
            {
                "seconds": seconds,
                "resident": resident,
                "tier_bytes": dict(block.tier_bytes),
                "dropped": len(block.transfers.dropped),
                "digest": hashlib.sha256(block.latents.cpu().numpy().tobytes()).hexdigest()[:16],
            }
        )
        if len(blocks) % 100 == 0:
            print(f"{config.only}: block {len(blocks)}/{frames // 3}, {resident / 1e6:.0f} MB", flush=True)
        started = time.perf_counter()
    write_json(path(config, config.only), {"bank": RUNS[config.only], "blocks": blocks})


def report(results: dict) -> None:
    """Print what stayed flat, where the frames are in the end, and what stayed equal."""
    rows = [
        ("memory", "resident at 1/4", "at the end", "growth, 2nd half", "s a block, 1st half", "2nd half",
         "device, host, disk at the end", "as unbounded"),
    ]  # fmt: skip
    unbounded = results["unbounded"]["blocks"]
    for name, result in results.items():
        rows.append((name, *figures(result["blocks"], unbounded)))
    print(markdown(rows))


def figures(blocks: list[dict], unbounded: list[dict]) -> list[str]:
    """A row of the report."""
    count = len(blocks)
    half = count // 2
    last = blocks[-1]
    growth = last["resident"] - blocks[half]["resident"]
    sizes = []
    for tier in ("device", "host", "disk"):
        sizes.append(f"{last['tier_bytes'].get(tier, 0) / 1e6:.1f}")
    same = f"{equal_from_start(blocks, unbounded)} of {count} blocks"
    dropping = first_drop(blocks)
    if dropping is not None:
        same += f" (first drop at block {dropping})"
    return [
        f"{blocks[count // 4]['resident'] / 1e6:.0f} MB",
        f"{last['resident'] / 1e6:.0f} MB",
        f"{growth / 1e3 / (3 * (count - half)):.1f} KB a frame",
        f"{median_of('seconds', blocks[SKIPPED:half]):.3f}",
        f"{median_of('seconds', blocks[half:]):.3f}",
        f"{', '.join(sizes)} MB",
        same,
    ]


def equal_from_start(blocks: list[dict], others: list[dict]) -> int:
    """How many blocks have the same latents before the first that differs."""
    for number, (block, other) in enumerate(zip(blocks, others, strict=True)):
        if block["digest"] != other["digest"]:
            return number
    return len(blocks)


def first_drop(blocks: list[dict]) -> int | None:
    """The first block at which the bank forgot a frame."""
    for number, block in enumerate(blocks):
        if block["dropped"]:
            return number
    return None


def median_of(key: str, blocks: list[dict]) -> float:
    return median(block[key] for block in blocks)


def draw(results: dict, target: Path) -> None:
    """Resident memory and seconds a block over the video."""
    figure = new_figure(7, 5)
    memory, seconds = figure.subplots(2, sharex=True)
    for name, result in results.items():
        blocks = result["blocks"]
        frames = range(0, 3 * len(blocks), 3)
        resident = []
        smooth = []
        for number, block in enumerate(blocks):
            resident.append(block["resident"] / 1e6)
            smooth.append(median_of("seconds", blocks[max(number - 25, 0) : number + 25]))
        memory.plot(frames, resident, label=name)
        seconds.plot(frames, smooth, label=name)
    memory.set(ylabel="resident memory, MB", ylim=(0, None))
    seconds.set(ylabel="seconds a block (running median)", xlabel="latent frame", ylim=(0, None))
    memory.legend(frameon=False)
    save(figure, target, dpi=100)
    print(f"drawn to {target}")


if __name__ == "__main__":
    run(main)
