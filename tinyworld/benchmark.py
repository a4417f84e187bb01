"""What a context policy is worth on tinyworld: `python -m tinyworld.benchmark [key=value ...]`.

Every row of configs/tinyworld_benchmark.yaml makes the same held-out prompts from the same noise; the
judge measures each video, and what it found is kept, so a stopped run goes on where it was. The table,
paired differences and a figure follow when all is there. `benchmark_tinyworld.sh` shares the work
over processes.
"""

import hashlib
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.curve import Curve
from evaluation.drift import drift_scores
from evaluation.measure import PICTURES_A_SECOND
from evaluation.picture import CELLS, ORIENTATIONS, SCALARS, describe
from pipeline import build
from pipeline.bank import EVICTIONS
from pipeline.config import RunConfig, load_config
from pipeline.outputs import PLACES, Digests
from pipeline.pipeline import Sample, load
from pipeline.retrieval import DESCRIPTORS, SELECTIONS
from tinyworld import judge
from tinyworld.context import BLOCK
from tinyworld.corpus import Clip, held_out
from tinyworld.sight import setting
from tinyworld.tables import METRICS, TRUTH, Unit, report
from tinyworld.world import FPS, ONE_LATENT, pixel_frames
from utils.errors import UserError, run
from utils.files import require_writable, write_json
from utils.processes import rank, share
from utils.progress import Progress
from utils.settings import load_settings, require_choice, to_dict

CONFIG = "configs/tinyworld_benchmark.yaml"
BUDGETS = ("device_gb", "host_gb", "disk_gb", "disk_folder")  # of the bank: where frames lie, not which or how exact


@dataclass(frozen=True)
class Row:
    """A way to generate: a config and what it changes, as a tree."""

    config: str = "configs/tinyworld_native.yaml"
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkSettings:
    """The benchmark.

    Attributes:
        rows: name -> how it generates; the name is a folder too.
        comparisons: what it shows -> [baseline, rows that are compared with it].
        only: rows to run, all if empty.
        prompts: how many of the held-out captions.
        samples: videos a caption.
        frames: length in latent frames.
        subset: 16 prompts with one sample each, instead.
        batch: videos generated together.
        model_root, generator_ckpt, ae_ckpt, steps: instead of the rows' own weights and denoising steps.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    comparisons: dict[str, list[str]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    prompts: int = 64
    samples: int = 1
    frames: int = 120
    subset: bool = False
    batch: int = 8
    seed: int = 0
    model_root: str | None = None
    generator_ckpt: str | None = None
    ae_ckpt: str | None = None
    steps: list[int] | None = None
    folder: str = "runs/tinyworld/benchmark"

    def __post_init__(self) -> None:
        for name in self.rows:
            if not re.fullmatch(r"[\w.-]+", name):
                raise UserError(f"row '{name}' in {CONFIG} cannot be a folder's name; use letters, digits, _ and -")
        for name in (*self.only, *(row for compared in self.comparisons.values() for row in compared)):
            require_choice("only or comparisons", name, self.rows)
        if min(self.prompts, self.samples, self.batch) < 1:
            raise UserError("prompts, samples and batch must be at least 1")

    def chosen(self) -> dict[str, Row]:
        return {name: row for name, row in self.rows.items() if name in self.only or not self.only}

    def units(self) -> list[Unit]:
        """(prompt, sample) of every video of a row."""
        prompts, samples = (16, 1) if self.subset else (self.prompts, self.samples)
        return [(prompt, sample) for prompt in range(prompts) for sample in range(samples)]

    def run_config(self, row: Row) -> RunConfig:
        """The settings that a row generates with."""
        told = {"model_root": self.model_root, "generator_ckpt": self.generator_ckpt, "denoising_step_list": self.steps}
        told = {key: value for key, value in told.items() if value is not None}
        overrides = {**row.overrides, **told, "seed": self.seed, "num_output_frames": self.frames}
        config = load_config(row.config, overrides)
        if self.ae_ckpt:
            config = replace(config, model_kwargs=replace(config.model_kwargs, ae_ckpt=self.ae_ckpt))
        return config


def main() -> None:
    settings = load_settings(BenchmarkSettings, CONFIG, sys.argv[1:])
    folder = require_writable(settings.folder)
    stores = {TRUTH: Store(folder / "truth", {"judge": judge.VERSION, "frames": settings.frames})}
    for name, row in settings.chosen().items():
        config = build.check(settings.run_config(row))
        stores[name] = Store(folder / name, identity(config))
    made = fill(settings, stores)
    results = {name: store.read(settings.units()) for name, store in stores.items()}
    due = {name: len(units_of(settings, name)) for name in stores}
    if all(len(results[name]) == due[name] for name in stores) and (made or rank() == 0):
        report(settings.comparisons, results, folder)


class Store:
    """One row's results, a file for each video, all of the same weights, settings and code.

    Raises:
        UserError: the folder holds those of others.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, path = folder, folder / "row.json"
        if path.exists():
            kept = json.loads(path.read_text())
            if kept != json.loads(json.dumps(about)):
                changed = sorted(key for key in {*kept, *about} if kept.get(key) != about.get(key))
                raise UserError(
                    f"{folder} holds results of other weights, settings or code ({', '.join(changed)}); "
                    "delete that folder, or keep it and name another with folder=..."
                )
        else:
            write_json(path, about)

    def path(self, unit: Unit) -> Path:
        return self.folder / f"{unit[0]:05d}-{unit[1]}.json"

    def read(self, units: Sequence[Unit]) -> dict[Unit, dict[str, float | None]]:
        """What is there of the units."""
        return {unit: json.loads(self.path(unit).read_text()) for unit in units if self.path(unit).exists()}


def identity(config: RunConfig) -> dict[str, Any]:
    """All that a result depends on: settings, kind of device, digests of weights and code, the judge's version."""
    settings = {key: value for key, value in to_dict(config).items() if key not in (*PLACES, "batch_size")}
    settings["bank"] = {key: value for key, value in settings["bank"].items() if key not in BUDGETS}
    del settings["model_kwargs"]["ae_ckpt"]
    device, dtype = build.placement(config)
    settings |= {"device": device.type, "dtype": str(dtype).removeprefix("torch."), "code": code(config)}
    digests = {name: found["sha256"] for name, found in Digests(build.weight_files(config))().items()}
    return {"judge": judge.VERSION, **settings, **digests}


def code(config: RunConfig) -> dict[str, str]:
    """Digests of the source of the policy, rules and descriptor in use; what they call in turn is not part of it."""
    used, kwargs = {"policy": type(build.build_policy(config))}, config.model_kwargs
    if config.layout().memory:
        used["selection"] = SELECTIONS[kwargs.selection]
        used["descriptor"] = DESCRIPTORS[kwargs.compression_method]
        used["eviction"] = EVICTIONS[config.bank.eviction]
    return {name: hashlib.sha256(source(part).encode()).hexdigest()[:16] for name, part in used.items()}


def source(part: Callable) -> str:
    """The code of a function, a class or an object of one; its name where none can be found."""
    part = part if inspect.isclass(part) or inspect.isfunction(part) else type(part)
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        return f"{part.__module__}.{part.__qualname__}"


def units_of(settings: BenchmarkSettings, name: str) -> list[Unit]:
    """A row's videos; the true video of a caption is always the same."""
    return [unit for unit in settings.units() if name != TRUTH or unit[1] == 0]


def fill(settings: BenchmarkSettings, stores: Mapping[str, Store]) -> int:
    """Make and measure this process's share of what is missing; how many batches that were.

    A batch of which anything is missing is made as a whole: rounding depends on the batch, results do not depend
    on where a run was stopped.
    """
    batches = [
        (name, units[first : first + settings.batch])
        for name in stores
        for units in [units_of(settings, name)]
        for first in range(0, len(units), settings.batch)
    ]
    mine = [
        (name, units)
        for name, units in share(batches)  # before finished ones are left out: processes that start apart agree
        if not all(stores[name].path(unit).exists() for unit in units)
    ]
    generated = sum(len(units) for name, units in mine if name != TRUTH)
    progress = Progress(generated, settings.frames // BLOCK, ONE_LATENT * BLOCK, quiet=rank() > 0)
    progress.say(f"{len(stores)} rows of {len(settings.units())} videos in {settings.folder}; {generated} to make here")
    pipelines, started = {}, time.monotonic()
    for name, units in mine:
        clips = [held_out(prompt, pixel_frames(settings.frames)) for prompt, _ in units]
        if name == TRUTH:
            videos = [clip.video for clip in clips]
        else:
            if name not in pipelines:
                captions = [held_out(prompt).caption for prompt in {prompt for prompt, _ in settings.units()}]
                pipelines = {name: load(settings.run_config(settings.rows[name]), captions)}
            progress.begin(f"{name} {units[0][0]}-{units[-1][0]}", len(units))
            samples = [Sample(clip.caption, *unit) for clip, unit in zip(clips, units, strict=True)]
            videos = np.concatenate(list(counted(pipelines[name].frames(samples), progress)), axis=1)
            progress.end()
        for video, clip, unit in zip(videos, clips, units, strict=True):
            write_json(stores[name].path(unit), measure(video, clip))
        if name != TRUTH:
            each = (time.monotonic() - started) / progress.made
            minutes = each * (generated - progress.made) / 60
            progress.say(f"{progress.made} of {generated} videos, {each:.1f} s each, {minutes:.0f} min left")
    progress.close()
    return len(mine)


def counted(blocks: Iterator[np.ndarray], progress: Progress) -> Iterator[np.ndarray]:
    """Pass the blocks on and count them."""
    for frames in blocks:
        progress.step(0, ())
        yield frames


def measure(video: np.ndarray, clip: Clip) -> dict[str, float | None]:
    """What the judge finds in a video [T, H, W, 3]; None where a measure has nothing to measure."""
    journey = judge.Journey(video)
    kept, due = journey.objects_kept()
    looks, colours = judge.objects_in_first_pass(video, clip.scene, clip.shot)
    revisits = {name: value for name, value in journey.revisits().items() if name in METRICS}
    return {
        **revisits,
        "objects kept": kept / due if due else None,
        "objects in the first pass": looks,
        "colours in the first pass": colours,
        "subject kept": journey.subject_kept(clip.meaning.subject),
        "ground and time kept": float(setting(video[-FPS:]) == (clip.meaning.ground, clip.meaning.time)),
        "motion plausible": float(journey.moves_plausibly().mean()),
        "camera as trained": float(journey.moves_as_trained(clip.shot).mean()),
        "drift": drift(video),
    }


def drift(video: np.ndarray) -> float:
    """The drift score of `evaluation.drift` of a video [T, H, W, 3] of bytes."""
    curve, every = Curve(len(SCALARS) + CELLS * CELLS * ORIENTATIONS), round(FPS / PICTURES_A_SECOND)
    for index in range(0, len(video), every):
        curve.add(index / FPS, describe(video[index]))
    return drift_scores(*curve.read())["drift"]


if __name__ == "__main__":
    run(main)
