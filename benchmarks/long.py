"""A very long video in a fixed budget: `python -m benchmarks.long [key=value ...]`.

Generates the same latents with an unbounded memory, with small tiers (device, host, disk), and with
a bounded bank; records resident memory and seconds a block, says where the latents agree, and draws
both curves. Each run is a process of its own, so that its memory is its own.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from utils.errors import UserError, run
from utils.files import atomic, require_writable, write_json
from utils.settings import Settings, load_settings, setting

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
        child = subprocess.run([sys.executable, "-m", "benchmarks.long", *sys.argv[1:], f"only={name}"])
        if child.returncode:  # it has said why
            sys.exit(child.returncode if child.returncode > 0 else 1)
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
    blocks, process, started = [], psutil.Process(), time.perf_counter()
    for block in pipeline.blocks(prompt):
        now = time.perf_counter()
        blocks.append(
            {
                "seconds": now - started,
                "resident": process.memory_info().rss,
                "tier_bytes": dict(block.tier_bytes),
                "dropped": len(block.transfers.dropped),
                "digest": hashlib.sha256(block.latents.cpu().numpy().tobytes()).hexdigest()[:16],
            }
        )
        started = time.perf_counter()
        if len(blocks) % 100 == 0:
            print(
                f"{config.only}: block {len(blocks)}/{frames // 3}, {process.memory_info().rss / 1e6:.0f} MB",
                flush=True,
            )
    write_json(path(config, config.only), {"bank": RUNS[config.only], "blocks": blocks})


def report(results: dict) -> None:
    """Print what stayed flat, where the frames are in the end, and what stayed equal."""
    plain = [block["digest"] for block in results["unbounded"]["blocks"]]
    columns = ("memory", "resident at 1/4", "at the end", "growth, 2nd half", "s a block, 1st half", "2nd half")
    columns += ("device, host, disk at the end", "as unbounded")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, result in results.items():
        blocks = result["blocks"]
        quarter, half = len(blocks) // 4, len(blocks) // 2
        first, second = (median(block["seconds"] for block in part) for part in (blocks[SKIPPED:half], blocks[half:]))
        growth = (blocks[-1]["resident"] - blocks[half]["resident"]) / (3e3 * (len(blocks) - half))
        tiers = [blocks[-1]["tier_bytes"].get(tier, 0) / 1e6 for tier in ("device", "host", "disk")]
        same = next((i for i, block in enumerate(blocks) if block["digest"] != plain[i]), len(blocks))
        first_drop = next((i for i, block in enumerate(blocks) if block["dropped"]), None)
        note = "" if first_drop is None else f" (first drop at block {first_drop})"
        print(
            f"| {name} | {blocks[quarter]['resident'] / 1e6:.0f} MB | {blocks[-1]['resident'] / 1e6:.0f} MB | "
            f"{growth:.1f} KB a frame | {first:.3f} | {second:.3f} | {', '.join(f'{size:.1f}' for size in tiers)} MB | "
            f"{same} of {len(blocks)} blocks{note} |"
        )


def draw(results: dict, target: Path) -> None:
    """Resident memory and seconds a block over the video."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (memory, seconds) = plt.subplots(2, figsize=(7, 5), sharex=True, layout="constrained")
    for name, result in results.items():
        blocks = result["blocks"]
        frames = [3 * index for index in range(len(blocks))]
        memory.plot(frames, [block["resident"] / 1e6 for block in blocks], label=name)
        smooth = [median(b["seconds"] for b in blocks[max(i - 25, 0) : i + 25]) for i in range(len(blocks))]
        seconds.plot(frames, smooth, label=name)
    memory.set(ylabel="resident memory, MB", ylim=(0, None))
    seconds.set(ylabel="seconds a block (running median)", xlabel="latent frame", ylim=(0, None))
    memory.legend(frameon=False)
    with atomic(target) as temporary:
        figure.savefig(temporary, dpi=100)
    print(f"drawn to {target}")


if __name__ == "__main__":
    run(main)
