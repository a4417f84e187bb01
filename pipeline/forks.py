"""Forks of a finished video: its blocks are given up to a time, the rest is made anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.given import Given, Stored
from pipeline.latents import open_latents
from pipeline.parent import Parent, require_same_weights
from pipeline.prompts import Prompt
from pipeline.record import COMMITTED_BY, Weights, content
from pipeline.samples import Sample
from pipeline.scenes import require_switch
from pipeline.state import check_state, states_beside
from pipeline.timeline import Grid, Segment, segments_of
from utils.cache import sha256_once
from utils.errors import UserError
from utils.processes import per_video
from utils.provenance import flat
from utils.tensors import digest
from wan.params import LatentFormat


@dataclass(frozen=True)
class Fork:
    """A fork that can be made.

    Attributes:
        start: latent frame from which it is made anew.
        stop: from which it is as its parent again; None: not again.
        scenes: its prompts.
    """

    parent: Parent
    start: int
    stop: int | None
    scenes: Sequence[Segment]


def plan_fork(config: RunConfig, parent: Parent, grid: Grid, weights: Weights) -> Fork:
    """What the settings `from`, `at` or `redo`, and `prompt` ask for.

    Raises:
        UserError: other weights, another size, or times that are not in the video.
    """
    require_same_weights(parent, weights)
    start, stop = _span(config, grid)
    for name in ("height", "width"):
        theirs, own = parent.record["config"].get(name), getattr(config, name)
        if theirs != own:
            raise UserError(f"from {parent.name} has {name} {theirs} where this run has {own}; they must be the same")
    frames = parent.record["config"].get("num_output_frames", 0)
    needed = start if stop is None else grid.frames
    if frames < needed:
        raise UserError(f"from {parent.name} has {frames} latent frames; {needed} are to be taken of it")
    scenes = _scenes(config, grid, parent, start, stop)
    for segment in scenes[1:]:
        require_switch(config.policy(), segment.how)
    return Fork(parent, start, stop, scenes)


def fork(config: RunConfig, grid: Grid, format: LatentFormat, plan: Fork) -> tuple[Sample, str]:
    """The one sample of a planned fork, and its name; its parent's latents are there.

    Raises:
        UserError: they are none of the parent's.
    """
    parent, start, stop = plan.parent, plan.start, plan.stop
    latents = open_latents(parent.latents)
    wanted = (parent.record["config"]["num_output_frames"], *format.shape(config.height, config.width))
    if tuple(latents.shape) != wanted:
        raise UserError(
            f"{parent.latents} has latents of {tuple(latents.shape)} where its video has {wanted}; delete it, and it "
            "is made again"
        )
    cache = Path(config.text_cache).expanduser() / "digests" if config.text_cache else None
    sha256 = sha256_once(parent.latents, cache)
    given: list[Given] = []
    if start:
        seed = parent.record["seed"]
        state, records = _kept(parent, config, start)
        seed = seed if seed != config.seed else None
        given.append(Stored(parent.latents, range(start), sha256, seed, state, records))
    if stop is not None:
        given.append(Stored(parent.latents, range(stop, grid.frames), sha256))
    record = parent.record
    text = " | ".join(segment.prompt for segment in plan.scenes)
    sample = Sample(text, record["prompt_index"], record["sample"], tuple(plan.scenes), tuple(given))
    return sample, _name(parent, config, sample, start, stop)


def _kept(parent: Parent, config: RunConfig, start: int) -> tuple[tuple[int, Path] | None, list[dict]]:
    """The last state kept of the parent that a run goes on from, and what is on record of the blocks before it.

    None where the run's context is another, or shared out: it leaves other keys and values.
    """
    if per_video() > 1:
        return None, []
    told, theirs = content(config), flat(parent.record["config"])
    for name, value in flat({name: told[name] for name in COMMITTED_BY}).items():
        if theirs.get(name) != value:
            return None, []
    states = states_beside(parent.folder / f"{parent.name}.mp4")
    frame = max((frame for frame in states if frame <= start), default=None)
    if frame is None:
        return None, []
    check_state(states[frame], {"latents": digest(open_latents(parent.latents)[:frame])})
    records = [block for block in parent.record.get("blocks", []) if block["start"] < frame]
    if len(records) != 1 + (frame - config.first_block) // config.num_frame_per_block:
        raise UserError(f"from={parent.name}: its record lacks blocks before {states[frame].name}; delete that file")
    return (frame, states[frame]), records


def _span(config: RunConfig, grid: Grid) -> tuple[int, int | None]:
    """Latent frames from which the video is made anew, and from which it is as it was again."""
    if (config.at is None) == (config.redo is None):
        raise UserError("from= needs at=TIME or redo=TIME-TIME, such as at=12s or redo=12s-15s")
    if config.at is not None:
        if config.keep_after:
            raise UserError("keep_after goes with redo=TIME-TIME, not with at=")
        return grid.start_at(config.at, "at"), None
    first, dash, last = config.redo.partition("-")
    if not dash:
        raise UserError(f"redo '{config.redo}' is no span; write redo=12s-15s")
    start = grid.start_at(first, "redo")
    stop = grid.ceil(grid.length(last, "redo"))
    if stop <= start:
        raise UserError(f"redo {config.redo} holds no block; its end must come after its start")
    if stop > grid.frames:
        raise UserError(f"redo {config.redo} ends after the video, {grid.frames} latent frames")
    return start, stop if config.keep_after and stop < grid.frames else None


def _scenes(config: RunConfig, grid: Grid, parent: Parent, start: int, stop: int | None) -> list[Segment]:
    """The parent's prompts, and where the command line gives another one, that in the part that is made anew."""
    if config.prompt is None:
        return list(parent.scenes)
    rest = Grid(grid.frames - start, grid.block, grid.block if start else grid.first, grid.rate)
    own = segments_of(Prompt(0, config.prompt), rest, config.switch, config.segments)
    scenes = [segment for segment in parent.scenes if segment.start < start]
    for segment in own:
        place = segment.start + start
        if stop is None or place < stop:
            scenes.append(Segment(place, segment.prompt, (segment.how or config.switch) if place else None))
    if stop is not None:
        scenes.append(Segment(stop, _prompt_at(parent.scenes, stop), config.switch))
        scenes += [segment for segment in parent.scenes if segment.start > stop]
    return scenes


def _prompt_at(scenes: Sequence[Segment], frame: int) -> str:
    return [segment.prompt for segment in scenes if segment.start <= frame][-1]


def _name(parent: Parent, config: RunConfig, sample: Sample, start: int, stop: int | None) -> str:
    """The parent's name, the span, and what tells forks of other settings apart."""
    told = repr((content(config), sample.scenes, start, stop))
    span = f"{start}" if stop is None else f"{start}-{stop}"
    return f"{parent.name}_{span}_{blake2b(told.encode(), digest_size=3).hexdigest()}"
