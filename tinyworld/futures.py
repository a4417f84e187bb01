"""What a common past is worth: `python -m tinyworld.futures [key=value ...]`.

Two methods make the same held-out captions from the same noise, in two ways: as whole videos, and as futures of one
past, the first method's. The judge measures all; the table says how the differences between the methods scatter
either way, and so how many videos an interval of the same width needs. What was found is kept, so a stopped run
goes on where it was.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluation.compare.statistics import DRAWS, FEWEST, Difference, compare, units_needed
from pipeline.build import load
from pipeline.config import RunConfig, load_config
from pipeline.decode import decode_stream
from pipeline.pipeline import Pipeline
from pipeline.preflight import preflight
from pipeline.samples import Sample
from tinyworld.benchmark import identity
from tinyworld.judging import measure as judge
from tinyworld.made_with import MadeWith
from tinyworld.results import METRICS, Found, Unit
from tinyworld.store import Store
from tinyworld.world.film import Clip, held_out
from tinyworld.world.scene import pixel_frames
from utils.errors import UserError, run
from utils.files import atomic, require_writable
from utils.settings import load_settings, setting
from utils.table import markdown

METHODS = ("native", "latentmem")
ROWS = (*METHODS, "future")  # what is made of each caption; a future is the second method's, of the first's past


@dataclass(frozen=True, kw_only=True)
class FuturesSettings(MadeWith):
    """Futures against whole videos"""

    captions: int = setting(32, "held-out captions", at_least=1)
    frames: int = setting(120, "length of a video in latent frames", at_least=6)
    past: int = setting(60, "latent frames of the common past", at_least=3)
    batch: int = setting(4, "captions at a time", at_least=1)
    folder: str = setting("runs/tinyworld/futures", "where results and the table go", place=True, writes=True)

    def run_config(self, method: str) -> RunConfig:
        """The settings that a method generates with."""
        overrides = {**self.overrides(), "num_output_frames": self.frames}
        config = load_config(f"configs/tinyworld_{method}.yaml", overrides)
        if self.past % config.num_frame_per_block or self.past >= self.frames:
            raise UserError(
                f"past {self.past} must be a multiple of the block of {config.num_frame_per_block} and less than "
                f"frames {self.frames}"
            )
        return config


def main() -> None:
    settings = load_settings(FuturesSettings, None, sys.argv[1:])
    folder = require_writable(settings.folder)
    configs = {method: preflight(settings.run_config(method)) for method in METHODS}
    about = {method: identity(found) for method, found in configs.items()}
    store = Store(folder / "results", about | {"past": settings.past})
    units = [(prompt, 0) for prompt in range(settings.captions)]
    pipelines: list[Pipeline] = []
    for first in range(0, len(units), settings.batch):
        batch = units[first : first + settings.batch]
        if all(store.has(unit) for unit in batch):
            continue
        pipelines = pipelines or [load(found) for found in configs.values()]
        started = time.monotonic()
        measure_batch(settings, pipelines, batch, store)
        seconds = time.monotonic() - started
        print(f"captions {batch[0][0]} to {batch[-1][0]} of {len(units)} in {seconds:.0f} s", flush=True)
    report(store.read(units), folder)


def measure_batch(
    settings: FuturesSettings, pipelines: Sequence[Pipeline], units: Sequence[Unit], store: Store
) -> None:
    """Make and judge everything of some captions; what is found is kept as `ROW/MEASURE`."""
    clips: list[Clip] = []
    samples = []
    for prompt, _ in units:
        clips.append(held_out(prompt, pixel_frames(settings.frames)))
        samples.append(Sample(clips[-1].caption, prompt))
    window = max(pipeline.policy.local_attn_size for pipeline in pipelines)
    found: dict[Unit, dict[str, float | None]] = {unit: {} for unit in units}
    for row, latents in zip(ROWS, latents_of(pipelines, samples, settings.past), strict=True):
        videos = np.concatenate(list(decode_stream(pipelines[0].vae, latents)), axis=1)
        for unit, clip, video in zip(units, clips, videos, strict=True):
            for name, value in judge.measure(video, clip, window).items():
                found[unit][f"{row}/{name}"] = value
    for unit in units:
        store.write(unit, found[unit])


def latents_of(pipelines: Sequence[Pipeline], samples: Sequence[Sample], past: int) -> Iterator[list[torch.Tensor]]:
    """The blocks [B, F, C, H, W] of each of `ROWS`."""
    first, second = pipelines
    whole = [block.latents for block in first.blocks(samples)]
    yield whole
    yield [block.latents for block in second.blocks(samples)]
    generation = second.start(samples)
    generation.kept = None
    future = []
    for latents in whole:
        if generation.start < past:
            future.append(generation.give(latents).latents)
        else:
            future.append(generation.step().latents)
    yield future


def report(found: Found, folder: Path) -> None:
    """Print the table and write futures.md."""
    lines = [["latentmem - native", "whole videos", "futures", "videos for the same interval", "for the effect found"]]
    for metric in METRICS:
        pairs = [paired(found, metric, row) for row in ROWS[1:]]
        whole, future = (compare(*pair) for pair in pairs)
        if whole is None or future is None or not whole.deviation:
            continue
        needed = f"{_needed(whole)} or {_needed(future)}"
        lines.append([metric, f"{whole:+.2f}", f"{future:+.2f}", share_needed(*pairs), needed])
    text = markdown(lines)
    with atomic(folder / "futures.md") as temporary:
        temporary.write_text(text + "\n")
    print(f"\n{text}\n\nalso in {folder}/futures.md")


def paired(found: Found, metric: str, row: str) -> tuple[dict[Unit, float], dict[Unit, float]]:
    """A measure of the first method and of a row, for the captions in which all rows have it."""
    before, after = {}, {}
    for unit, values in found.items():
        if all(values.get(f"{name}/{metric}") is not None for name in ROWS):
            before[unit] = values[f"{METHODS[0]}/{metric}"]
            after[unit] = values[f"{row}/{metric}"]
    return before, after


def share_needed(whole: tuple[dict, dict], future: tuple[dict, dict], seed: int = 0) -> str:
    """Futures that give the interval of a hundred pairs of whole videos, in percent, with a bootstrap interval.

    An interval's width goes with the deviation of the differences over the root of their number.
    """
    differences = []
    for before, after in (whole, future):
        differences.append([after[unit] - before[unit] for unit in before])
    x = np.array(differences)  # [whole or future, captions]
    if x.shape[1] < FEWEST:
        return ""
    draws = np.random.default_rng(seed).integers(0, x.shape[1], (DRAWS, x.shape[1]))
    variances = x[:, draws].var(axis=2, ddof=1)  # [2, draws]
    shares = variances[1, variances[0] > 0] / variances[0, variances[0] > 0]
    low, high = np.percentile(shares, [2.5, 97.5])
    return f"{x[1].var(ddof=1) / x[0].var(ddof=1):.0%} [{low:.0%}, {high:.0%}]"


def _needed(found: Difference) -> str:
    count = units_needed(found.mean, found.deviation)
    return "none" if count is None else str(count)


if __name__ == "__main__":
    run(main)
