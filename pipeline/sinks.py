"""Where the blocks of a run end: videos with their records, or latents.

A file gets its name when it is finished, and a video when all that belongs beside it is there. If the picture of what
was retrieved fails, the video is finished without it.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from pipeline.config import RunConfig
from pipeline.decode import DecodeThread, State, decode_stream, require_finite
from pipeline.film import Film, Watch
from pipeline.generation import LatentBlock
from pipeline.given import Given, Stored
from pipeline.latents import open_latents
from pipeline.memory_plot import plot_memory
from pipeline.pipeline import Pipeline
from pipeline.record import Weights, made_of, record_run
from pipeline.samples import Sample
from pipeline.state import states_beside
from pipeline.unfinished import Unfinished, segment_ends
from utils.clock import Clock
from utils.errors import UserError
from utils.files import publish, require_writable, write_json
from utils.optional import best_effort
from utils.tensors import save_tensors
from utils.video import VideoWriter, join_videos

OnBlock = Callable[[LatentBlock], None]  # called when a block is on its way to the file


class Sink(Protocol):
    """The files of a run, one a sample."""

    def path(self, sample: Sample) -> Path:
        """The file that is there when the sample is finished."""

    def is_finished(self, sample: Sample) -> bool:
        """Whether the sample need not be made."""

    def made(self, batch: Sequence[Sample], wanted: Sequence[Sample]) -> list[Given]:
        """The first blocks of a batch where an interrupted run left them, for each sample; none where it did not."""

    def write(
        self,
        pipeline: Pipeline,
        batch: Sequence[Sample],
        wanted: Sequence[Sample],
        blocks: Iterable[LatentBlock],
        on_block: OnBlock,
    ) -> None:
        """Take the blocks of one batch as they come and finish the files of those of its samples that are wanted."""


@dataclass(frozen=True)
class VideoSink:
    """`NAME-N.mp4` with `NAME-N.json`, `NAME-N.latents.npy`, with retrieval `NAME-N.memory.png`, and kept states.

    Attributes:
        names: sample -> name.
        weights: gives the names and digests of the weight files, once they are needed.
        watch: is shown each block's frames [B, T, H, W, 3] in bytes on their way to the file.
        past: what there is of another video, with which these begin; their blocks come from there on.
    """

    folder: Path
    names: Mapping[Sample, str]
    config: RunConfig
    weights: Callable[[], Weights]
    watch: Watch | None = None
    past: Unfinished | None = None

    def path(self, sample: Sample) -> Path:
        return self.folder / f"{self.names[sample]}.mp4"

    def is_finished(self, sample: Sample) -> bool:
        return self.config.skip_existing and self.path(sample).exists()

    def made(self, batch: Sequence[Sample], wanted: Sequence[Sample]) -> list[Given]:
        """See `Sink`; latents of finished samples are beside their videos."""
        sources = []
        for sample in batch:
            if sample in wanted:
                unfinished = self._unfinished(sample)
                unfinished.check(start_anew=not self.config.skip_existing)
                sources.append((unfinished.latents_path, unfinished.frames))
            else:
                kept = latents_beside(self.path(sample))
                sources.append((kept, len(open_latents(kept)) if kept.exists() else 0))
        frames = min(count for _, count in sources)
        if not frames:
            return []
        return [Stored(path, range(frames)) for path, _ in sources]

    def write(
        self,
        pipeline: Pipeline,
        batch: Sequence[Sample],
        wanted: Sequence[Sample],
        blocks: Iterable[LatentBlock],
        on_block: OnBlock,
    ) -> None:
        """See `Sink`; a second thread decodes and writes a block's frames while the next one is generated, or before.

        While its blocks come, a sample of the batch may be replaced by one with further scenes: that is recorded.
        """
        making = {}
        for number, sample in enumerate(batch):
            if sample in wanted:
                making[number] = self._unfinished(sample)
        clock = Clock(pipeline.device)
        shape = (self.config.num_output_frames, *pipeline.format.shape(self.config.height, self.config.width))
        for unfinished in making.values():
            unfinished.begin(shape, self.past)
        begun = min((unfinished.ends for unfinished in making.values()), key=len)
        ends = segment_ends(self.config.blocks, self.config.segment_blocks, begun)
        self._shoot(pipeline, batch, making, blocks, on_block, clock, ends)
        for number, unfinished in making.items():
            self._finish(pipeline, batch[number], unfinished, len(ends), clock.seconds)

    def _shoot(
        self,
        pipeline: Pipeline,
        batch: Sequence[Sample],
        making: Mapping[int, Unfinished],
        blocks: Iterable[LatentBlock],
        on_block: OnBlock,
        clock: Clock,
        ends: Sequence[int],
    ) -> None:
        """Make what is missing of the segments of a batch's videos."""
        known = min(unfinished.frames for unfinished in making.values())
        segments, states = _decoded(making, len(batch))
        if self.past is not None and not segments:
            raise UserError(f"{self.past.folder} has no decoder's state that can be read; delete it and start again")
        film = Film(pipeline, making, segments, states, known, clock, ends, self.watch)
        film.block = self.past.ends[-1] if self.past else 0

        def take(block: LatentBlock, ready: AbstractContextManager) -> None:
            film.take(block, ready)
            on_block(block)

        try:
            with clock("total"), DecodeThread(pipeline.device, self.config.preset.in_turn) as thread:
                for block in clock.each("generate", blocks):
                    thread.take(take, block)
        finally:
            film.discard()

    def _finish(
        self,
        pipeline: Pipeline,
        sample: Sample,
        unfinished: Unfinished,
        segments: int,
        seconds: Mapping[str, float],
    ) -> None:
        """Give a video whose segments are whole its name; what is beside it comes first."""
        path = self.path(sample)
        frames, blocks = unfinished.said(segments)
        whole = unfinished.segment(0)
        if segments > 1:
            whole = unfinished.folder / "whole.mp4"
            join_videos([unfinished.segment(number) for number in range(segments)], whole, frames)
        record = record_run(self.config, sample, self.weights(), seconds, frames, blocks)
        picture = unfinished.folder / "memory.png"
        if pipeline.descriptor is not None:
            with best_effort("the picture of what was retrieved", "the video is finished without it"):
                plot_memory(picture, blocks, self.config.num_output_frames, sample.prompt)
        path.unlink(missing_ok=True)  # never pair an old video with the new record
        is_wanted = self.config.keep_latents or unfinished.states  # which are known by the latents before them
        if is_wanted and unfinished.latents_path.exists():
            os.replace(unfinished.latents_path, latents_beside(path))
        for old in states_beside(path).values():
            old.unlink(missing_ok=True)
        for state in unfinished.states:
            os.replace(state, path.with_name(f"{path.stem}.{state.name}"))
        write_json(path.with_suffix(".json"), record)
        if picture.exists():
            os.replace(picture, path.with_suffix(".memory.png"))
        publish(whole, path)
        unfinished.discard()

    def _unfinished(self, sample: Sample) -> Unfinished:
        return Unfinished(self.path(sample), made_of(self.config, sample, self.weights()))


def latents_beside(video: Path) -> Path:
    """Where a finished video's latents are."""
    return video.with_suffix(".latents.npy")


def _decoded(making: Mapping[int, Unfinished], batch: int) -> tuple[int, list[State]]:
    """How many segments need not be decoded again, and the decoder's states after them for the whole batch."""
    segments = min(unfinished.segments for unfinished in making.values())
    if not segments or len(making) < batch:  # of a finished sample no state is kept
        return 0, []
    states = [unfinished.state(segments) for unfinished in making.values()]
    if any(state is None for state in states):
        return 0, []
    return segments, states


@dataclass(frozen=True)
class LatentSink:
    """`latent_{position:06d}.pt`, each [F, C, H, W] in bfloat16; of the first `videos` ones an mp4, too, for a look."""

    folder: Path
    videos: int
    skip_existing: bool

    def path(self, sample: Sample) -> Path:
        return self.folder / f"latent_{sample.index:06d}.pt"

    def video(self, sample: Sample) -> Path | None:
        """The video for a look, of the samples that get one."""
        if sample.index >= self.videos:
            return None
        return self.folder / "videos" / f"latent_{sample.index:06d}.mp4"

    def is_finished(self, sample: Sample) -> bool:
        video = self.video(sample)
        is_shown = video is None or video.exists()
        return self.skip_existing and is_shown and self.path(sample).exists()

    def made(self, batch: Sequence[Sample], wanted: Sequence[Sample]) -> list[Given]:
        """None: a corpus's videos are short."""
        return []

    def write(
        self,
        pipeline: Pipeline,
        batch: Sequence[Sample],
        wanted: Sequence[Sample],
        blocks: Iterable[LatentBlock],
        on_block: OnBlock,
    ) -> None:
        parts = []
        for block in blocks:
            require_finite(block)
            parts.append(block.latents.to("cpu", torch.bfloat16))
            on_block(block)
        for sample, latents in zip(batch, torch.cat(parts, dim=1), strict=True):
            if sample not in wanted:
                continue
            save_tensors(self.path(sample), latents.clone())
            if video := self.video(sample):
                save_clip(pipeline, latents, video)


@dataclass(frozen=True)
class Follower:
    """The files as a process has them that helps to make them and leaves decoding and writing to its group's first.

    Attributes:
        sink: the first one's.
    """

    sink: Sink

    def path(self, sample: Sample) -> Path:
        return self.sink.path(sample)

    def is_finished(self, sample: Sample) -> bool:
        return self.sink.is_finished(sample)

    def made(self, batch: Sequence[Sample], wanted: Sequence[Sample]) -> list[Given]:
        return self.sink.made(batch, wanted)

    def write(
        self,
        pipeline: Pipeline,
        batch: Sequence[Sample],
        wanted: Sequence[Sample],
        blocks: Iterable[LatentBlock],
        on_block: OnBlock,
    ) -> None:
        for block in blocks:
            on_block(block)


def save_clip(pipeline: Pipeline, latents: torch.Tensor, path: Path) -> None:
    """Decode one clip's latents [F, C, H, W] to an mp4."""
    config = pipeline.config
    require_writable(path.parent)
    writer = VideoWriter(path, (config.width, config.height), config.fps)
    try:
        for frames in decode_stream(pipeline.vae, latents.unsqueeze(0).split(1, dim=1)):
            writer.write(frames[0])
        writer.close()
    finally:
        writer.discard()
