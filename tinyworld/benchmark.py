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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.bank.eviction import EVICTIONS
from pipeline.config import RunConfig, load_config
from pipeline.preflight import Preflight, preflight
from pipeline.record import Digests, content
from pipeline.run import make
from pipeline.samples import Sample
from pipeline.selection import SELECTIONS
from tinyworld.hypotheses import Hypothesis
from tinyworld.judge_sink import JudgeSink
from tinyworld.judging import measure as judge
from tinyworld.league import BASELINES, LEAGUES, league_rows
from tinyworld.made_with import MadeWith
from tinyworld.places import MEMORIES, OwnTrack
from tinyworld.results import TRUTH, Unit
from tinyworld.store import Store
from tinyworld.tables import report
from tinyworld.world.film import held_out
from tinyworld.world.scene import pixel_frames
from utils.claim import claim
from utils.errors import UserError, run
from utils.files import require_writable
from utils.processes import rank, share
from utils.provenance import flat
from utils.settings import load_settings, require_choice, setting

CONFIG = "configs/tinyworld_benchmark.yaml"
SUBSET = 16  # prompts of subset=true


@dataclass(frozen=True)
class Row:
    """A way to generate: a config and what it changes, as a tree.

    With `holds`, a name in `tinyworld.places.MEMORIES`, the memory holds that instead of what retrieval finds.
    """

    config: str = "configs/tinyworld_native.yaml"
    overrides: dict[str, Any] = field(default_factory=dict)
    holds: str = ""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(MadeWith):
    """The benchmark."""

    rows: dict[str, Row] = setting({}, "name -> config and overrides it generates with; the name is a folder too")
    comparisons: dict[str, list[str]] = setting({}, "question -> [baseline, rows that are compared with it]")
    hypotheses: dict[str, list[Hypothesis]] = setting({}, "family -> differences that are tested together")
    methods: str = setting(
        "none", "rows of inference.sh's methods instead, at published sizes or in one window", choices=LEAGUES
    )
    league: list[str] = setting([], "measures of the one family of hypotheses in which methods are compared")
    only: list[str] = setting([], "rows to run; all if empty")
    prompts: int = setting(64, "held-out captions", at_least=1)
    samples: int = setting(1, "videos a caption", at_least=1)
    frames: int = setting(120, "latent frames of a video", at_least=1)
    subset: bool = setting(False, f"{SUBSET} captions with one video each, instead")
    batch: int = setting(8, "videos generated together", at_least=1)
    ae_ckpt: str | None = setting(None, "the retrieval encoder's weights, instead of the rows' own")
    folder: str = setting("runs/tinyworld/benchmark", "where results and tables go", place=True, writes=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.rows:
            if not re.fullmatch(r"[\w.-]+", name) or name in (".", ".."):
                raise UserError(f"row '{name}' in {CONFIG} cannot be a folder's name; use letters, digits, _ and -")
            if self.rows[name].holds:
                require_choice(f"rows.{name}.holds", self.rows[name].holds, MEMORIES)
                if not self.run_config(name).policy().retrieves:
                    raise UserError(f"row '{name}' in {CONFIG} holds something and its config retrieves nothing")
        for name in self.only:
            require_choice("only", name, LEAGUES[self.methods][0] or self.rows)
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

    def run_config(self, name: str) -> RunConfig:
        """The settings that a row generates with."""
        row = self.rows[name]
        overrides = {
            **row.overrides,
            **self.overrides(),
            "num_output_frames": self.frames,
            "batch_size": self.batch,
            "output_folder": f"{self.folder}/{name}",
        }
        config = load_config(row.config, overrides)
        if self.ae_ckpt:
            config = replace(config, model_kwargs=replace(config.model_kwargs, ae_ckpt=self.ae_ckpt))
        return config

    def window(self) -> int:
        """Latent frames out of view after which a place is forgotten by every row: the longest window among them."""
        return max(self.run_config(name).policy().local_attn_size for name in self.rows)


def with_methods(settings: BenchmarkSettings) -> BenchmarkSettings:
    """The settings with methods as rows, each compared with the two that all start from, if they ask for it."""
    if settings.methods == "none":
        return settings
    rows = {name: Row(config, changes) for name, (config, changes) in league_rows(settings.methods).items()}
    comparisons, family = {}, []
    others = list(rows)
    for baseline in BASELINES:
        others.remove(baseline)  # each pair is compared once
        comparisons[f"what each method changes to {baseline}"] = [baseline, *others]
        for row in others:
            family += [Hypothesis(baseline=baseline, row=row, metric=metric) for metric in settings.league]
    hypotheses = {"methods differ from native and latentmem": family}
    return replace(settings, rows=rows, comparisons=comparisons, hypotheses=hypotheses)


def main() -> None:
    settings = with_methods(load_settings(BenchmarkSettings, CONFIG, sys.argv[1:]))
    rows = {name: preflight(settings.run_config(name)) for name in settings.chosen()}
    stores = open_stores(settings, rows)
    before = count_results(settings, stores)
    fill(settings, rows, stores)
    results = {name: store.read(units_of(settings, name)) for name, store in stores.items()}
    count = sum(map(len, results.values()))
    finished = count == sum(len(units_of(settings, name)) for name in stores)
    if finished and (count > before or rank() == 0):
        report(settings.comparisons, results, Path(settings.folder), settings.hypotheses)


def open_stores(settings: BenchmarkSettings, rows: Mapping[str, Preflight]) -> dict[str, Store]:
    """The results of the true videos and of every row that is to run; all of them are checked before."""
    require_partners(settings)
    window = settings.window()
    abouts = {TRUTH: {"judge": judge.VERSION, "window": window, "frames": settings.frames}}
    for name, found in rows.items():
        abouts[name] = {"window": window, **identity(found)}
        if holds := settings.rows[name].holds:
            abouts[name]["holds"] = holds
            abouts[name]["code"]["places"] = hashlib.sha256(source(OwnTrack).encode()).hexdigest()[:16]
    folder = require_writable(settings.folder)
    stores = {}
    for name, about in abouts.items():
        stores[name] = Store(folder / ("truth" if name == TRUTH else name), about)
    return stores


def count_results(settings: BenchmarkSettings, stores: Mapping[str, Store]) -> int:
    """How many of the videos have been judged."""
    count = 0
    for name, store in stores.items():
        count += sum(map(store.has, units_of(settings, name)))
    return count


def require_partners(settings: BenchmarkSettings) -> None:
    """Refuse batches in which a video that is to remember another scene is alone."""
    rest = len(settings.units()) % settings.batch
    for name, row in settings.chosen().items():
        if row.holds == "other_scene" and (settings.batch == 1 or rest == 1):
            raise UserError(
                f"row '{name}' takes its memory from the next video of the batch, and batch {settings.batch} leaves "
                f"one of {len(settings.units())} videos alone; choose another batch"
            )


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


def fill(settings: BenchmarkSettings, rows: Mapping[str, Preflight], stores: Mapping[str, Store]) -> None:
    """Judge this process's share of the true videos, and make and judge its share of every row's."""
    truth = stores[TRUTH]
    for unit in share(units_of(settings, TRUTH)):
        if not truth.has(unit):
            clip = held_out(unit[0], pixel_frames(settings.frames))
            truth.write(unit, judge.measure(clip.video, clip, settings.window()))
    for name, found in rows.items():
        samples = []
        for prompt, number in units_of(settings, name):
            samples.append(Sample(held_out(prompt).caption, prompt, number))
        with claim(stores[name].folder, stores[name].about) as held:
            make(found, samples, JudgeSink(stores[name], settings.window(), settings.rows[name].holds), held)


if __name__ == "__main__":
    run(main)
