"""Where the blocks of a run end: videos with their records, or latents.

A file gets its name when it is finished. The picture of what was retrieved is made after that; if it fails,
the video is still finished.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from pipeline.decode import decode_stream, require_finite, start_decoder, to_uint8
from pipeline.generation import LatentBlock
from pipeline.memory_plot import plot_memory
from pipeline.pipeline import Pipeline
from pipeline.record import Weights, record_block, record_run
from pipeline.samples import Sample
from utils.background import Background
from utils.clock import Clock
from utils.files import require_writable, write_json
from utils.optional import best_effort
from utils.streams import SideStream
from utils.tensors import digest, save_tensors
from utils.video import VideoWriter

OnBlock = Callable[[LatentBlock], None]  # called when a block is on its way to the file


class Sink(Protocol):
    """The files of a run, one a sample."""

    def path(self, sample: Sample) -> Path:
        """The file that is there when the sample is finished."""

    def is_finished(self, sample: Sample) -> bool:
        """Whether the sample need not be made."""

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
    """`NAME-N.mp4` with `NAME-N.json` and, with retrieval, `NAME-N.memory.png`.

    Attributes:
        names: prompt number -> name.
        weights: gives the names and digests of the weight files, once they are needed.
    """

    folder: Path
    names: Mapping[int, str]
    skip_existing: bool
    weights: Callable[[], Weights]

    def path(self, sample: Sample) -> Path:
        return self.folder / f"{self.names[sample.index]}-{sample.number}.mp4"

    def is_finished(self, sample: Sample) -> bool:
        return self.skip_existing and self.path(sample).exists()

    def write(
        self,
        pipeline: Pipeline,
        batch: Sequence[Sample],
        wanted: Sequence[Sample],
        blocks: Iterable[LatentBlock],
        on_block: OnBlock,
    ) -> None:
        """See `Sink`; a second thread decodes and writes a block's frames while the next one is generated."""
        config, clock = pipeline.config, Clock(pipeline.device)
        side = SideStream(pipeline.device, "decode")
        decoder = start_decoder(pipeline.vae)
        writers: dict[int, VideoWriter] = {}  # number in the batch -> its file
        records: dict[int, list[dict]] = {}
        size = (config.width, config.height)

        def decode(block: LatentBlock, ready: AbstractContextManager) -> None:
            with ready, clock("decode"):
                require_finite(block)
                frames = to_uint8(decoder(block.latents))
            with clock("write"):
                for number, writer in writers.items():
                    writer.write(frames[number])
                    made = {"latents": digest(block.latents[number]), "frames": digest(frames[number])}
                    records[number].append(record_block(block, number) | {"digests": made})
            on_block(block)

        try:
            for number, sample in enumerate(batch):
                if sample in wanted:
                    writers[number] = VideoWriter(self.path(sample), size, config.fps)
                    records[number] = []
            with clock("total"), Background(side.use_device) as background:
                for block in clock.each("generate", blocks):
                    background.do(decode, block, side.after_now())
            for number, writer in writers.items():
                self._finish(pipeline, batch[number], writer, clock.seconds, records[number])
        finally:
            for writer in writers.values():
                writer.discard()

    def _finish(
        self,
        pipeline: Pipeline,
        sample: Sample,
        writer: VideoWriter,
        seconds: Mapping[str, float],
        blocks: list[dict],
    ) -> None:
        config = pipeline.config
        writer.finish()
        record = record_run(config, sample, self.weights(), seconds, writer.frames, blocks)
        writer.path.unlink(missing_ok=True)  # never pair an old video with the new record
        write_json(writer.path.with_suffix(".json"), record)
        writer.close()
        if pipeline.descriptor is not None:
            with best_effort("the picture of what was retrieved", "the video is finished without it"):
                plot_memory(writer.path.with_suffix(".memory.png"), blocks, config.num_output_frames, sample.prompt)


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
