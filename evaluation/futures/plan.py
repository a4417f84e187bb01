"""Which futures there are to be: of each past under each method, and what each is to be called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from evaluation.futures.settings import FuturesSettings
from pipeline.backbones import METHODS, PROJECT, config_path
from pipeline.config import RunConfig, VideoSettings, load_config
from pipeline.course import forked, grid_of
from pipeline.forks import Fork, plan_fork
from pipeline.parent import Parent, inherited, read_parent
from pipeline.preflight import Preflight, preflight
from pipeline.record import Digests, Weights
from pipeline.samples import Sample
from utils.errors import UserError


@dataclass(frozen=True)
class Future:
    """One video to be made of a past.

    Attributes:
        column: the folder that it is in, by what its futures have in common.
        name: of its files; futures of one name in several folders are compared.
        config: of the fork that it is.
    """

    column: str
    name: str
    config: RunConfig
    sample: Sample

    @property
    def path(self) -> Path:
        return Path(self.config.output_folder) / f"{self.name}.mp4"


@dataclass(frozen=True)
class Past:
    """Futures that have their past in common, under one method, which is committed once.

    Attributes:
        found: what runs of the method need and have.
        weights: role -> file and digest.
    """

    method: str
    parent: Parent
    found: Preflight
    weights: Weights
    futures: tuple[Future, ...]

    @property
    def name(self) -> str:
        return f"{self.method}_{self.parent.name}"

    @property
    def frames(self) -> int:
        """Latent frames of the past."""
        return self.futures[0].sample.given[0].frames.stop

    @property
    def blocks(self) -> int:
        """Blocks of the past."""
        config = self.found.config
        return 1 + (self.frames - config.first_block) // config.num_frame_per_block

    @property
    def sample(self) -> Sample:
        """What all the futures have in common."""
        known = self.futures[0].sample
        scenes = tuple(scene for scene in self.parent.scenes if scene.start < self.frames)
        return Sample(scenes[0].prompt, known.index, known.number, scenes, known.given)

    def digests(self) -> Weights:
        return self.weights


def pasts_of(backbone: str, settings: FuturesSettings, of_runs: Sequence[str]) -> list[Past]:
    """All futures, those of one past together, those of one method after another.

    Args:
        of_runs: settings of every run, as `key=value`.

    Raises:
        UserError: a parent, a method or a time that does not fit.
    """
    parents = find_parents(settings.parent)
    planned = []
    for method in settings.methods:
        typed = [*_of_video(parents), "keep_latents=true", *METHODS[method].settings, *of_runs]
        found = preflight(load_config(PROJECT / config_path(backbone, method), typed))
        weights = Digests(found.files, found.config.text_cache)()
        for parent in parents:
            configs = _configs(settings, method, parent, found)
            for _, _, config in configs:
                _require_past(plan_fork(config, parent, grid_of(found), weights), config)
            planned.append((method, parent, found, weights, configs))
    pasts = []
    for method, parent, found, weights, configs in planned:  # all are known to be possible
        futures = []
        for column, name, config in configs:
            sample, _ = forked(replace(found, config=config), weights)
            futures.append(Future(column, name, config, sample))
        pasts.append(Past(method, parent, found, weights, tuple(futures)))
    return pasts


def find_parents(path: str) -> list[Parent]:
    """The finished video at `path`, or those in it, in order; forks among them are left out.

    Raises:
        UserError: there are none, or two are of one prompt and sample, or their sizes or lengths differ.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [read_parent(path)]
    parents: dict[tuple[int, int], Parent] = {}
    for video in sorted(folder.glob("[!.]*.mp4")):
        parent = read_parent(video)
        if parent.record["config"].get("parent"):
            continue
        key = parent.record["prompt_index"], parent.record["sample"]
        if key in parents:
            raise UserError(
                f"from={path}: {parents[key].name} and {parent.name} are of one prompt and sample; name one"
            )
        parents[key] = parent
    found = list(parents.values())
    if not found:
        raise UserError(f"from={path} is a folder without finished videos; name another, or a video")
    for parent in found[1:]:
        ours, theirs = _of_video([found[0]]), _of_video([parent])
        if ours != theirs:
            pairs = zip(ours, theirs, strict=True)
            mine, its = next((one, other) for one, other in pairs if one != other)
            raise UserError(f"from={path}: {found[0].name} has {mine} and {parent.name} {its}; name one of them")
    return found


def _of_video(parents: Sequence[Parent]) -> list[str]:
    """Settings that futures take from their parents, which all have the same."""
    names = [field.name for field in fields(VideoSettings) if field.name != "seed"]
    return inherited(parents[0], [*names, "num_frame_per_block", "independent_first_frame"])[1:]  # but the folder


def _configs(
    settings: FuturesSettings, method: str, parent: Parent, found: Preflight
) -> list[tuple[str, str, RunConfig]]:
    """Folder, name and settings of each future of a past."""
    planned = []
    for number, prompt in enumerate(settings.prompts or [""]):
        for place, seed in enumerate(settings.seeds or [parent.record["seed"]]):
            column, sample = _column(settings, method, number), parent.record["sample"]
            if column:
                sample = sample * max(len(settings.seeds), 1) + place
            column = column or f"seed{seed}"
            config = replace(
                found.config,
                parent=str(parent.folder / parent.name),
                at=settings.at,
                prompt=prompt or None,
                seed=seed,
                output_folder=f"{settings.folder}/{column}",
            )
            planned.append((column, f"{parent.record['prompt_index']:05d}-{sample}", config))
    return planned


def _require_past(plan: Fork, config: RunConfig) -> None:
    if not plan.start:
        raise UserError(f"at {config.at} is the start of {plan.parent.name}, which leaves no past; name a later time")


def _column(settings: FuturesSettings, method: str, prompt: int) -> str:
    """What tells the futures of a folder from those of others; empty where only their seeds do."""
    words = [method] if len(settings.methods) > 1 else []
    if len(settings.prompts) > 1:
        text = re.sub(r"\W+", "_", settings.prompts[prompt])[:40].strip("_")
        words.append(f"prompt{prompt}_{text}" if text else f"prompt{prompt}")
    return "_".join(words)
