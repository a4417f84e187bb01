"""From settings and prompts to the samples of a run: what each video starts from, and when its prompts change."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.forks import fork, plan_fork
from pipeline.given import find_start
from pipeline.parent import read_parent
from pipeline.preflight import Preflight
from pipeline.prompts import Prompt
from pipeline.record import Weights
from pipeline.remake import remake_latents
from pipeline.samples import Sample
from pipeline.scenes import require_switch
from pipeline.timeline import Grid, segments_of
from utils.errors import UserError
from utils.paths import read_path
from utils.processes import per_video


def grid_of(found: Preflight) -> Grid:
    """Where the blocks of a run's videos begin.

    Raises:
        UserError: keep_state names no time of them.
    """
    grid = found.config.grid(found.format.temporal)
    if found.config.keep_state and per_video() > 1:
        raise UserError(
            f"keep_state is for videos of one process, and GPUS_PER_VIDEO is {per_video()}; unset one of them"
        )
    grid.starts_at(found.config.keep_state, "keep_state")
    return grid


def samples_of(found: Preflight, prompts: Sequence[Prompt], count: int = 1) -> tuple[list[Sample], list[str]]:
    """The samples of each prompt, with what is to be said of them.

    Args:
        count: samples a prompt.

    Raises:
        UserError: a start or a course of prompts that cannot be.
    """
    config, grid = found.config, grid_of(found)
    samples = []
    notes = []
    for prompt in prompts:
        segments = segments_of(prompt, grid, config.switch, config.segments, config.switch_frame_indices)
        scenes = tuple(segments) if len(segments) > 1 or segments[0].prompt != prompt.text else ()
        for segment in segments[1:]:
            require_switch(found.policy, segment.how)
        given = ()
        if path := _start(prompt, config.start):
            if config.vae == "tiny":
                raise UserError(f"start {path} must be encoded, and vae tiny is a decoder alone; set vae=full")
            size = (config.width, config.height)
            start, words = find_start(path, grid, found.format, size, config.fps, config.fit, config.start_frames)
            given = (start,)
            if words not in notes:
                notes.append(words)
        for number in range(count):
            samples.append(Sample(prompt.text, prompt.index, number, scenes, given))
    return samples, notes


def forked(found: Preflight, weights: Weights) -> tuple[Sample, str]:
    """The one sample of a run with `from=`, and its name; its parent's latents are made again if they are not there."""
    config, grid = found.config, grid_of(found)
    parent = read_parent(config.parent)
    plan = plan_fork(config, parent, grid, weights)
    remake_latents(parent, config)
    return fork(config, grid, found.format, plan)


def _start(prompt: Prompt, default: str | None) -> Path | None:
    """What a video starts from: its prompt's own field `start`, else the setting."""
    own = prompt.fields.get("start", default)
    if own is None:
        return None
    if not isinstance(own, str) or not own:
        raise UserError(f"prompt {prompt.index}: start is {own}; name a picture, a clip or a file of latents")
    return read_path(own)
