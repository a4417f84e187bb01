"""A batch's frames on their way to files: decoded, and encoded in segments, in a second thread."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np

from pipeline.decode import State, require_finite, start_decoder, to_uint8
from pipeline.generation import LatentBlock
from pipeline.pipeline import Pipeline
from pipeline.record import record_block
from pipeline.unfinished import Unfinished
from utils.clock import Clock
from utils.tensors import digest
from utils.video import VideoWriter

Watch = Callable[[LatentBlock, np.ndarray], None]


class Film:
    """Takes the blocks of a batch in order; those of segments that are there already are not decoded again.

    Args:
        making: number in the batch -> its video in the making.
        segments: how many segments are there, of all of them.
        states: the decoder's state after those, for each sample of the batch; none to begin.
        known: latent frames that are there, of all of them.
        ends: the number of blocks that are made when each segment ends.
        watch: is shown each block's frames [B, T, H, W, 3] in bytes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        making: Mapping[int, Unfinished],
        segments: int,
        states: Sequence[State],
        known: int,
        clock: Clock,
        ends: Sequence[int],
        watch: Watch | None = None,
    ) -> None:
        self.config, self.making, self.known, self.clock = pipeline.config, making, known, clock
        self.ends, self.watch, self.about = ends, watch, pipeline.about
        self.decoder = start_decoder(pipeline.vae)
        if states:
            self.decoder.restore(states)
        self.segment = segments  # the one that is written
        self.skipped = ends[segments - 1] if segments else 0  # blocks whose frames are there
        self.block = 0  # number of the next one
        self.writers: dict[int, VideoWriter] = {}
        self.records: dict[int, list[dict]] = {}

    def take(self, block: LatentBlock, ready: AbstractContextManager) -> None:
        """Keep a block's latents; decode, encode and record it.

        Args:
            ready: within it the block is finished on the device.
        """
        with ready, self.clock("decode"):
            require_finite(block)
            latents = block.latents.float().cpu()
            for number, unfinished in self.making.items():
                if block.plan.start >= self.known:
                    unfinished.write(block.plan.start, latents[number])
                if block.state is not None:
                    unfinished.keep(block.state, self.about)
            frames = None
            if self.block >= self.skipped:
                frames = to_uint8(self.decoder(block.latents))
        self.block += 1
        if frames is None:
            return
        if self.watch is not None:
            self.watch(block, frames)
        with self.clock("write"):
            self._begin_segment()
            for number, writer in self.writers.items():
                writer.write(frames[number])
                made = {"latents": digest(latents[number]), "frames": digest(frames[number])}
                self.records[number].append(record_block(block, number) | {"digests": made})
            if self.block == self.ends[self.segment]:
                self._end_segment()

    def discard(self) -> None:
        """Leave no half of a segment."""
        for writer in self.writers.values():
            writer.discard()

    def _begin_segment(self) -> None:
        if self.writers:
            return
        size = (self.config.width, self.config.height)
        for number, unfinished in self.making.items():
            self.writers[number] = VideoWriter(unfinished.segment(self.segment), size, self.config.fps)
            self.records[number] = []

    def _end_segment(self) -> None:
        is_last = self.segment == len(self.ends) - 1
        for number, writer in self.writers.items():
            writer.close()
            state = None if is_last else self.decoder.state(number)
            self.making[number].end_segment(self.segment, self.records[number], writer.frames, state)
        self.writers = {}
        self.segment += 1
