"""What each method costs: `python -m benchmarks.methods [key=value ...]`.

All methods run in alternation, block by block, in one process, on random weights of one size, with the sizes that
each was published with. Seconds are medians; operations and bytes are those of a block's plan, averaged over the
blocks of the steady state. `planned=true` computes them for a size without making or running a model.

    python -m benchmarks.methods size=tinyworld
    python -m benchmarks.methods size=small
    python -m benchmarks.methods size=1.3b height=480 width=832 planned=true
"""

import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.inputs import require_output
from benchmarks.random_models import SIZES, format_of, make_model, make_text
from pipeline.backbones import METHODS, PROJECT, config_path
from utils.errors import UserError, run
from utils.files import write_json
from utils.settings import Settings, load_settings, require_choice, setting, to_dict
from utils.table import align

if TYPE_CHECKING:
    from pipeline.context import ContextPlan, ContextPolicy
    from pipeline.frames import FrameShape
    from pipeline.generation import Generation
    from wan.params import WanParams

FIRST = 90  # latent frame from which every method is in its steady state


@dataclass(frozen=True, kw_only=True)
class MethodsConfig(Settings):
    """What to measure"""

    size: str = setting("tinyworld", "sizes of the transformer", choices=SIZES)
    height: int = setting(64, "of the video, in pixels", at_least=16, at_most=16384)
    width: int = setting(96, "of the video, in pixels", at_least=16, at_most=16384)
    methods: list[str] = setting([], "which ones; all if empty")
    blocks: int = setting(10, "blocks of each method that count, after those that fill window and memory", at_least=2)
    steps: int = setting(4, "denoising steps a block", at_least=1, at_most=1000)
    planned: bool = setting(False, "compute operations and bytes alone; nothing is run")
    seed: int = setting(0, "of all noise", at_least=0, at_most=2**63 - 1)
    output: str = setting("runs/methods.json", "where the JSON goes", writes=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.methods:
            require_choice("methods", name, METHODS)
        multiple = 2 * format_of(self.size).spatial
        for name in ("height", "width"):
            if getattr(self, name) % multiple:
                raise UserError(f"{name} {getattr(self, name)} is no multiple of {multiple}, which this size takes")

    def names(self) -> list[str]:
        return self.methods or list(METHODS)


def main() -> None:
    config = load_settings(MethodsConfig, None, sys.argv[1:])
    require_output(config.output)
    result = measure(config)
    write_json(config.output, result)
    print(table(result))
    print(f"written to {config.output}")


def measure(config: MethodsConfig) -> dict:
    """Figures of every method."""
    from pipeline.frames import FrameShape
    from wan.params import WanParams

    params = WanParams(**SIZES[config.size])
    latent = format_of(config.size).shape(config.height, config.width)
    shape = FrameShape.of(params, *latent[1:])
    figures = {}
    for name in config.names():
        figures[name] = planned(policy_of(name), shape, params, config)
    if not config.planned:
        for name, seconds in run_all(config, shape, latent).items():
            figures[name] |= seconds
    return {"config": to_dict(config), "methods": figures}


def policy_of(method: str) -> "ContextPolicy":
    """The context of a method, as `bash inference.sh tinyworld METHOD` has it."""
    from pipeline.config import load_config

    return load_config(PROJECT / config_path("tinyworld", method), METHODS[method].settings).policy()


def planned(policy: "ContextPolicy", shape: "FrameShape", params: "WanParams", config: MethodsConfig) -> dict:
    """Operations and bytes of a block, from the plans of the steady state."""
    import torch

    from pipeline.kv_cache import KVCache

    flops, moved = [], []
    before: list = []
    for start in range(FIRST, FIRST + 12 * policy.block, policy.block):
        plan = plan_of(policy, start)
        assembled = [plan]
        operations = config.steps * operations_of(plan, shape, params)
        if policy.query == "draft":  # its first step sees no memory
            assembled = [policy.plan(start), plan]
            operations += operations_of(assembled[0], shape, params) - operations_of(plan, shape, params)
        for forward in (*policy.before(start), policy.commit(plan)):
            operations += operations_of(forward, shape, params, leaves=True)
        flops.append(operations)
        new = []
        for pieces in (one.past[0] for one in assembled):
            for place, piece in enumerate(pieces):
                if place >= len(before) or before[place] != piece or piece.role == "merged":
                    new.append(piece)
            before = pieces
        moved.append(sum(shape.nbytes(torch.bfloat16, piece.pool) for piece in new))
    held = KVCache.nbytes_of(shape, policy, torch.bfloat16)
    return {
        "context": policy.describe(),
        "tflop": statistics.mean(flops) / 1e12,
        "written_mb": statistics.mean(moved[1:]) / 1e6,
        "held_mb": held / 1e6,
        "bank_mb_a_block": banked(policy) * shape.nbytes(torch.bfloat16) / 1e6,
    }


def operations_of(plan: "ContextPlan", shape: "FrameShape", params: "WanParams", leaves: bool = False) -> int:
    """Those of one forward; `leaves` as in `forward_flops`."""
    from benchmarks.flops import forward_flops

    queries = shape.tokens() * len(plan.own)
    seen = sum(shape.tokens(piece.pool) for piece in plan.pieces())
    return forward_flops(params, queries, seen, leaves)


def plan_of(policy: "ContextPolicy", start: int):
    """A plan of the steady state; the latest candidates stand for what would be retrieved."""
    candidates = list(policy.candidates(start))[-policy.memory_size :] if policy.memory_size else []
    return policy.plan(start, [candidates] if candidates else [])


def banked(policy: "ContextPolicy") -> int:
    """By how many frames the bank grows a block."""
    if not policy.fetched:
        return 0
    from pipeline.bank.settings import BankSettings

    return policy.block if policy.bank(BankSettings()).capacity is None else 0


def run_all(config: MethodsConfig, shape: "FrameShape", latent: tuple[int, int, int]) -> dict[str, dict]:
    """Seconds a block of every method, on one model."""
    import torch

    torch.manual_seed(config.seed)
    model = make_model(config.size, "cpu", torch.float32)
    generations = {name: generation_of(policy_of(name), model, shape, latent, config) for name in config.names()}
    seconds: dict[str, list[float]] = {name: [] for name in generations}
    for generation in generations.values():
        while generation.start < FIRST // 3:  # past every window
            generation.step()
    for _ in range(config.blocks):
        for name, generation in generations.items():
            started = time.perf_counter()
            generation.step()
            seconds[name].append(time.perf_counter() - started)
    found = {}
    for name, times in seconds.items():
        found[name] = {"block_s": statistics.median(times), "quartiles_s": statistics.quantiles(times, n=4)}
    return found


def generation_of(
    policy: "ContextPolicy", model, shape: "FrameShape", latent: tuple[int, int, int], config: MethodsConfig
) -> "Generation":
    """A generation of random prompts with a method's context."""
    import torch

    from pipeline.bank.bank import build_bank
    from pipeline.bank.settings import BankSettings
    from pipeline.descriptors import AvgPool
    from pipeline.generation import Generation
    from pipeline.kv_cache import KVCache
    from pipeline.noise import SeededNoise
    from pipeline.retrieval import Retrieval
    from pipeline.sampler import FlowSchedule, Sampler

    index = Retrieval(AvgPool().load(latent, "cpu")) if policy.retrieves and policy.memory_size else None
    bank = None
    if policy.fetched:
        bank = build_bank(policy.bank(BankSettings()), index, shape.dims, 10**4, torch.float32, torch.device("cpu"))
    schedule = FlowSchedule()
    steps = schedule.steps([1000 - i * 1000 // config.steps for i in range(config.steps)], warp=True)
    return Generation(
        model=model,
        policy=policy,
        cache=KVCache(shape, policy, bank),
        index=index,
        sampler=Sampler(schedule, steps),
        noise=SeededNoise(config.seed, [(0, 0)]),
        text=model.encode_text(make_text(model.params)),
        shape=(1, policy.block, *latent),
        device=torch.device("cpu"),
    )


def table(result: dict) -> str:
    """The figures for a terminal."""
    head = ["method", "block", "TFLOP", "written a block", "held", "bank grows a block"]
    rows = [head]
    for name, figures in result["methods"].items():
        seconds = f"{figures['block_s'] * 1e3:.0f} ms" if "block_s" in figures else "planned"
        written, held, bank = (f"{figures[key]:.2f} MB" for key in ("written_mb", "held_mb", "bank_mb_a_block"))
        rows.append([name, seconds, f"{figures['tflop']:.3g}", written, held, bank])
    return align(rows)


if __name__ == "__main__":
    run(main)
