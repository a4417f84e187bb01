"""Where a benchmark's blocks end: they are decoded and judged, and what the judge found is kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.decode import require_finite, start_decoder, to_uint8
from pipeline.generation import LatentBlock
from pipeline.given import Given
from pipeline.pipeline import Pipeline
from pipeline.samples import Sample
from pipeline.sinks import OnBlock
from tinyworld.judging.measure import measure
from tinyworld.places import bounding
from tinyworld.store import Store
from tinyworld.world.film import held_out


@dataclass(frozen=True)
class JudgeSink:
    """A result for each sample; see `pipeline.sinks.Sink`. A sample's index is the number of a held-out clip.

    Attributes:
        store: of the row.
        window: latent frames out of view after which a place is forgotten.
        holds: what the row's memory holds, a name in `tinyworld.places.MEMORIES`, instead of what retrieval finds.
    """

    store: Store
    window: int
    holds: str = ""

    def path(self, sample: Sample) -> Path:
        return self.store.path((sample.index, sample.number))

    def is_finished(self, sample: Sample) -> bool:
        return self.store.has((sample.index, sample.number))

    def made(self, batch: Sequence[Sample], wanted: Sequence[Sample]) -> list[Given]:
        return []

    def write(
        self,
        pipeline: Pipeline,
        batch: Sequence[Sample],
        wanted: Sequence[Sample],
        blocks: Iterable[LatentBlock],
        on_block: OnBlock,
    ) -> None:
        if self.holds:
            blocks = bounding(pipeline, self.holds).blocks(batch)
        decoder = start_decoder(pipeline.vae)
        parts = []  # each [B, T of the block, H, W, 3]
        for block in blocks:
            require_finite(block)
            parts.append(to_uint8(decoder(block.latents)))
            on_block(block)
        videos = np.concatenate(parts, axis=1)
        for sample, video in zip(batch, videos, strict=True):
            if sample in wanted:
                clip = held_out(sample.index, len(video))
                self.store.write((sample.index, sample.number), measure(video, clip, self.window))
