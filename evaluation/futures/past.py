"""A past is committed once, and its futures are forked from it."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.futures.plan import Future, Past
from pipeline.config import RunConfig
from pipeline.film import Film
from pipeline.generation import Generation, LatentBlock
from pipeline.noise import SeededNoise
from pipeline.pipeline import Pipeline
from pipeline.record import made_of
from pipeline.script import Script
from pipeline.sinks import VideoSink
from pipeline.unfinished import Unfinished
from utils.clock import Clock
from utils.progress import Progress


@dataclass(frozen=True)
class Committed:
    """A past that futures can be forked from.

    Attributes:
        generation: as it is after the past's last block.
        kept: its latents, the video of its one segment and the decoder's state after that.
    """

    generation: Generation
    kept: Unfinished


def waiting(past: Past, folder: Path) -> Unfinished:
    """The hidden folder in which a past waits for the last of its futures."""
    return Unfinished(folder / f"{past.name}.mp4", made_of(_config(past), past.sample, past.weights))


def commit(past: Past, pipeline: Pipeline, folder: Path) -> Committed:
    """Give a past's blocks to a generation, and decode them if that was not done before."""
    sample, config = past.sample, _config(past)
    pipeline = replace(pipeline, config=config)
    kept = waiting(past, folder)
    kept.check(start_anew=not config.skip_existing)
    known, segments = kept.frames, kept.segments
    kept.begin(_shape(pipeline))
    generation = pipeline.start(sample)
    generation.kept = None
    film = Film(pipeline, {0: kept}, segments, [], known, Clock(pipeline.device), [past.blocks, config.blocks])
    try:
        for block in pipeline.past(generation, sample, Script([sample], (), pipeline.vae)):
            film.take(block, nullcontext())
    finally:
        film.discard()
    return Committed(generation, kept)


def make(past: Past, future: Future, committed: Committed, pipeline: Pipeline, progress: Progress) -> None:
    """Make one future, all but its past."""
    sample, config, batch = future.sample, future.config, [future.sample]
    pipeline = replace(pipeline, config=config)
    sink = VideoSink(future.path.parent, {sample: future.name}, config, past.digests, past=committed.kept)
    script = Script(batch, sink.made(batch, batch), pipeline.vae)
    generation = committed.generation.fork(SeededNoise(config.seed, [(sample.index, sample.number)]))
    blocks = pipeline.go_on(generation, script, config.num_output_frames)

    def tell(block: LatentBlock) -> None:
        retrieved = block.selection.frames[0] if block.selection else ()
        progress.step(block.memory_bytes, retrieved, block.transfers.dropped)

    sink.write(pipeline, batch, batch, blocks, tell)


def _config(past: Past) -> RunConfig:
    """The settings of a past alone."""
    return replace(past.futures[0].config, prompt=None, seed=past.parent.record["seed"])


def _shape(pipeline: Pipeline) -> tuple[int, int, int, int]:
    """Of a whole video's latents, [F, C, H, W]."""
    config = pipeline.config
    return (config.num_output_frames, *pipeline.format.shape(config.height, config.width))
