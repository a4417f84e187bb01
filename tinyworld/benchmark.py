"""What a context policy is worth on tinyworld: `python -m tinyworld.benchmark [key=value ...]`.

Every row of configs/tinyworld_benchmark.yaml makes the same held-out prompts from the same noise; the
judge measures each video, and what it found is kept, so a stopped run goes on where it was. The table,
paired differences and a figure follow when all is there. `benchmark_tinyworld.sh` shares the work
over processes.
"""

import hashlib
import inspect
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bank.eviction import EVICTIONS
from pipeline.build import load
from pipeline.config import RunConfig, load_config
from pipeline.pipeline import Pipeline
from pipeline.preflight import Preflight, preflight
from pipeline.record import Digests, content
from pipeline.samples import Sample
from pipeline.selection import SELECTIONS
from tinyworld.hypotheses import Hypothesis
from tinyworld.judging import measure as judge
from tinyworld.results import TRUTH, Unit
from tinyworld.store import Store
from tinyworld.tables import report
from tinyworld.world.film import Clip, held_out
from tinyworld.world.scene import ONE_LATENT, pixel_frames
from utils.errors import UserError, run
from utils.files import require_writable
from utils.processes import rank, share
from utils.progress import Progress
from utils.provenance import flat
from utils.settings import Settings, load_settings, require_choice, setting

CONFIG = "configs/tinyworld_benchmark.yaml"
SUBSET = 16  # prompts of subset=true


@dataclass(frozen=True)
class Row:
    """A way to generate: a config and what it changes, as a tree."""

    config: str = "configs/tinyworld_native.yaml"
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(Settings):
    """The benchmark."""

    rows: dict[str, Row] = setting({}, "name -> config and overrides it generates with; the name is a folder too")
    comparisons: dict[str, list[str]] = setting({}, "question -> [baseline, rows that are compared with it]")
    hypotheses: dict[str, list[Hypothesis]] = setting({}, "family -> differences that are tested together")
    only: list[str] = setting([], "rows to run; all if empty")
    prompts: int = setting(64, "held-out captions", at_least=1)
    samples: int = setting(1, "videos a caption", at_least=1)
    frames: int = setting(120, "latent frames of a video", at_least=1)
    subset: bool = setting(False, f"{SUBSET} captions with one video each, instead")
    batch: int = setting(8, "videos generated together", at_least=1)
    seed: int = setting(0, "seed of the noise", at_least=0, at_most=2**63 - 1)
    model_root: str | None = setting(None, "folder of the model's parts, instead of the rows' own")
    generator_ckpt: str | None = setting(None, "the transformer's weights, instead of the rows' own")
    ae_ckpt: str | None = setting(None, "the retrieval encoder's weights, instead of the rows' own")
    steps: list[int] | None = setting(None, "denoising steps, instead of the rows' own", at_least=1, at_most=1000)
    folder: str = setting("runs/tinyworld/benchmark", "where results and tables go", place=True, writes=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.rows:
            if not re.fullmatch(r"[\w.-]+", name) or name in (".", ".."):
                raise UserError(f"row '{name}' in {CONFIG} cannot be a folder's name; use letters, digits, _ and -")
        for name in self.only:
            require_choice("only", name, self.rows)
        for question, names in self.comparisons.items():
            if len(names) < 2:
                raise UserError(f"comparison '{question}' in {CONFIG} compares nothing; name a baseline and other rows")
            for name in names:
                require_choice("comparisons", name, self.rows)
        for family in self.hypotheses.values():
            for hypothesis in family:
                for name in (hypothesis.baseline, hypothesis.row):
                    require_choice("hypotheses", name, self.rows)

    def chosen(self) -> dict[str, Row]:
        """The rows to run."""
        if not self.only:
            return self.rows
        return {name: row for name, row in self.rows.items() if name in self.only}

    def units(self) -> list[Unit]:
        """(prompt, sample) of every video of a row."""
        samples = 1 if self.subset else self.samples
        return list(itertools.product(range(self.captions()), range(samples)))

    def captions(self) -> int:
        """How many of the held-out captions are used."""
        return SUBSET if self.subset else self.prompts

    def run_config(self, row: Row) -> RunConfig:
        """The settings that a row generates with."""
        overrides = {**row.overrides, "seed": self.seed, "num_output_frames": self.frames}
        if self.model_root is not None:
            overrides["model_root"] = self.model_root
        if self.generator_ckpt is not None:
            overrides["generator_ckpt"] = self.generator_ckpt
        if self.steps is not None:
            overrides["denoising_step_list"] = self.steps
        config = load_config(row.config, overrides)
        if self.ae_ckpt:
            config = replace(config, model_kwargs=replace(config.model_kwargs, ae_ckpt=self.ae_ckpt))
        return config

    def window(self) -> int:
        """Latent frames out of view after which a place is forgotten by every row: the longest window among them."""
        return max(self.run_config(row).policy().local_attn_size for row in self.rows.values())


def main() -> None:
    settings = load_settings(BenchmarkSettings, CONFIG, sys.argv[1:])
    stores = open_stores(settings)
    made = fill(settings, stores)
    results = {}
    finished = True
    for name, store in stores.items():
        units = units_of(settings, name)
        results[name] = store.read(units)
        finished = finished and len(results[name]) == len(units)
    if finished and (made or rank() == 0):
        report(settings.comparisons, results, Path(settings.folder), settings.hypotheses)


def open_stores(settings: BenchmarkSettings) -> dict[str, Store]:
    """The results of every row that is to run, and of the true videos; all rows are checked before."""
    abouts = {TRUTH: {"judge": judge.VERSION, "window": settings.window(), "frames": settings.frames}}
    for name, row in settings.chosen().items():
        found = preflight(settings.run_config(row))
        abouts[name] = {"window": settings.window(), **identity(found)}
    folder = require_writable(settings.folder)
    stores = {}
    for name, about in abouts.items():
        stores[name] = Store(folder / ("truth" if name == TRUTH else name), about)
    return stores


def identity(found: Preflight) -> dict[str, Any]:
    """All that a result depends on: settings, kind of device, digests of weights and code, the judge's version."""
    about = flat(content(found.config))
    about["device"] = found.device.type
    about["dtype"] = str(found.dtype).removeprefix("torch.")
    about["code"] = code(found.config)
    for name, weights in Digests(found.files)().items():
        about[name] = weights["sha256"]
    return {"judge": judge.VERSION, **about}


def code(config: RunConfig) -> dict[str, str]:
    """Digests of the source of the policy, rules and descriptor in use; what they call in turn is not part of it."""
    used = {"policy": config.policy()}
    if descriptor := config.descriptor():
        used["selection"] = SELECTIONS[config.model_kwargs.selection]
        used["descriptor"] = descriptor
        used["eviction"] = EVICTIONS[config.bank.eviction]
    digests = {}
    for name, part in used.items():
        digests[name] = hashlib.sha256(source(part).encode()).hexdigest()[:16]
    return digests


def source(part: Callable) -> str:
    """The code of a function, a class or an object of one; its name where none can be found."""
    if not inspect.isclass(part) and not inspect.isfunction(part):
        part = type(part)
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        return f"{part.__module__}.{part.__qualname__}"


def units_of(settings: BenchmarkSettings, name: str) -> list[Unit]:
    """A row's videos; the true video of a caption is always the same."""
    if name != TRUTH:
        return settings.units()
    return [(prompt, sample) for prompt, sample in settings.units() if sample == 0]


def batches_of(settings: BenchmarkSettings, stores: Mapping[str, Store]) -> list[tuple[str, list[Unit]]]:
    """This process's share of the batches of which anything is missing.

    The batches are shared out before finished ones are left out, so that processes which start apart agree.
    """
    batches = []
    for name in stores:
        units = units_of(settings, name)
        for first in range(0, len(units), settings.batch):
            batches.append((name, units[first : first + settings.batch]))
    unfinished = []
    for name, units in share(batches):
        if stores[name].missing(units):
            unfinished.append((name, units))
    return unfinished


def fill(settings: BenchmarkSettings, stores: Mapping[str, Store]) -> int:
    """Make and measure this process's share of what is missing; how many batches that were.

    A batch of which anything is missing is made as a whole: rounding depends on the batch, results do not depend
    on where a run was stopped.
    """
    batches = batches_of(settings, stores)
    to_generate = sum(len(units) for name, units in batches if name != TRUTH)
    block = settings.run_config(next(iter(settings.rows.values()))).policy().block
    progress = Progress(to_generate, settings.frames // block, ONE_LATENT * block, quiet=rank() > 0)
    videos_a_row = len(settings.units())
    progress.say(f"{len(stores)} rows of {videos_a_row} videos in {settings.folder}; {to_generate} to make here")
    started = time.monotonic()
    loaded = None
    for name, units in batches:
        clips = [held_out(prompt, pixel_frames(settings.frames)) for prompt, _ in units]
        if name == TRUTH:
            videos = [clip.video for clip in clips]
        else:
            if loaded is None or loaded[0] != name:
                loaded = None  # room for the next one
                loaded = (name, load_row(settings, name))
            videos = generate(loaded[1], clips, units, progress, name)
        for video, clip, unit in zip(videos, clips, units, strict=True):
            stores[name].write(unit, judge.measure(video, clip, settings.window()))
        if name != TRUTH:
            seconds = (time.monotonic() - started) / progress.made
            minutes = seconds * (to_generate - progress.made) / 60
            progress.say(f"{progress.made} of {to_generate} videos, {seconds:.1f} s each, {minutes:.0f} min left")
    progress.close()
    return len(batches)


def load_row(settings: BenchmarkSettings, name: str) -> Pipeline:
    """A row's pipeline, with all captions encoded."""
    captions = [held_out(prompt).caption for prompt in range(settings.captions())]
    return load(settings.run_config(settings.rows[name]), captions)


def generate(
    pipeline: Pipeline, clips: Sequence[Clip], units: Sequence[Unit], progress: Progress, name: str
) -> np.ndarray:
    """Videos [B, T, H, W, 3] uint8 of the clips' captions."""
    progress.begin(f"{name} {units[0][0]}-{units[-1][0]}", len(units))
    samples = []
    for clip, (prompt, sample) in zip(clips, units, strict=True):
        samples.append(Sample(clip.caption, prompt, sample))
    blocks = list(counted(pipeline.frames(samples), progress))  # each [B, T of the block, H, W, 3]
    progress.end()
    return np.concatenate(blocks, axis=1)


def counted(blocks: Iterator[np.ndarray], progress: Progress) -> Iterator[np.ndarray]:
    """Pass the blocks on and count them."""
    for frames in blocks:
        progress.step(0, ())
        yield frames


if __name__ == "__main__":
    run(main)
