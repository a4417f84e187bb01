"""Latents that are there before a video is made: of a picture, a clip, a file, or another video.

A video's blocks are sampled or given; see `pipeline.generation`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ae.dataset import open_latents as open_corpus_file
from pipeline.latents import open_latents
from pipeline.timeline import Grid
from utils.errors import UserError
from utils.files import sha256
from utils.moving import FITS, count_frames, frames_of, is_picture
from utils.settings import require_choice
from wan.params import LatentFormat
from wan.vae import StreamingEncoder

if TYPE_CHECKING:
    from pipeline.autoencoders import VAE
    from pipeline.config import RunConfig

LATENTS = (".pt", ".pth", ".npy")
AT_ONCE = 16  # frames of a clip that are encoded together


class Given(Protocol):
    """Latents of a span of a video."""

    frames: range  # which latent frames

    def open(self, vae: "VAE | None") -> "Reader":
        """Begin to read them."""

    def describe(self) -> dict[str, Any]:
        """What they are, for a record."""


class Reader(Protocol):
    def __call__(self, frames: range) -> torch.Tensor:
        """[F, C, H, W] of some of the latent frames; asked for in rising order."""


@dataclass(frozen=True)
class Stored:
    """Latents in a file, at the same places: of a video (`.npy`, which may still grow) or of a corpus (`.pt`).

    Attributes:
        digest: of the file.
        seed: of the finished video whose blocks these are, where it is another: its noise chose what they retrieved.
        state: latent frame, and what that video's generation held before it.
        records: what is on record of the blocks before.
    """

    path: Path
    frames: range
    digest: str = ""
    seed: int | None = None
    state: tuple[int, Path] | None = None
    records: Sequence[Mapping[str, Any]] = ()

    def describe(self) -> dict[str, Any]:
        told = {"file": str(self.path), "sha256": self.digest, "frames": [self.frames.start, self.frames.stop]}
        return told if self.seed is None else told | {"seed": self.seed}

    def open(self, vae: "VAE | None") -> Reader:
        latents = _stored(self.path)

        def read(frames: range) -> torch.Tensor:
            return latents[frames.start : frames.stop].float()

        return read


@dataclass(frozen=True)
class Filmed:
    """A picture or a clip, encoded as it is read.

    Attributes:
        size: (width, height) of the video in pixels.
        fps: of the video.
        fit: how frames of another shape are brought to its size, a name in `utils.moving.FITS`.
        still: the one picture is held for as long as `frames` last.
    """

    path: Path
    frames: range
    size: tuple[int, int]
    fps: int
    fit: str
    still: bool
    digest: str = ""  # of the file

    def describe(self) -> dict[str, Any]:
        span = [self.frames.start, self.frames.stop]
        return {"file": str(self.path), "sha256": self.digest, "frames": span, "fit": self.fit}

    def open(self, vae: "VAE | None") -> Reader:
        encoded = self._encoded(vae)
        waiting: list[torch.Tensor] = []  # [C, H, W] each
        position = 0  # frame of the first that waits

        def read(frames: range) -> torch.Tensor:
            nonlocal position
            while position + len(waiting) < frames.stop:
                waiting.extend(next(encoded))
                drop = min(max(frames.start - position, 0), len(waiting))
                del waiting[:drop]
                position += drop
            first = frames.start - position
            return torch.stack(waiting[first : first + len(frames)])

        return read

    def _encoded(self, vae: "VAE") -> Iterator[torch.Tensor]:
        encoder = StreamingEncoder(vae)
        for frames in self._pictures():
            pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
            yield encoder(pixels.unsqueeze(0))[0].cpu()

    def _pictures(self) -> Iterator[np.ndarray]:
        """[T, H, W, 3] of bytes."""
        found = frames_of(self.path, self.size, self.fps, self.fit)
        if self.still:
            picture = next(found)
            while True:
                yield np.stack([picture] * AT_ONCE)
        batch = []
        for frame in found:
            batch.append(frame)
            if len(batch) == AT_ONCE:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


def find_start(
    path: Path, grid: Grid, format: LatentFormat, size: tuple[int, int], fps: int, fit: str, limit: int
) -> tuple[Given, str]:
    """What a video starts from.

    Args:
        path: a picture, a clip or a file of latents.
        size: (width, height) of the video in pixels.
        fit: a name in `utils.moving.FITS`.
        limit: latent frames to take of it at most; -1 for all.

    Returns:
        The given blocks, and what was made of the file, in words.

    Raises:
        UserError: it cannot be read, is longer than the video, or is of another shape.
    """
    require_choice("fit", fit, FITS)
    if not path.is_file():
        raise UserError(f"start {path} does not exist; name a picture, a clip or a file of latents")
    still = False
    if path.suffix.lower() in LATENTS:
        count = _count_latents(path, format, size)
    elif is_picture(path):
        count, still = grid.first, True
    else:
        frames = count_frames(path, fps, "start")
        count = format.latent_frames(frames)
        if count < grid.first:
            raise UserError(
                f"start {path} has {frames} frames at {fps} a second; the first block needs "
                f"{format.pixel_frames(grid.first)}: give a longer clip, or one picture"
            )
    taken = count if limit < 0 else min(limit, count)
    taken = grid.floor(taken)
    if not taken:
        raise UserError(f"start_frames {limit} is less than the {grid.first} latent frames of the first block")
    if taken >= grid.frames:
        raise UserError(
            f"start {path} has {taken} latent frames and the video {grid.frames}; raise num_output_frames or set "
            "start_frames to take less of it"
        )
    words = f"the first {taken} latent frames are {path.name}"
    if still and taken > 1:
        words += f", held still for {format.pixel_frames(taken)} frames, as this model begins with a block of {taken}"
    elif taken < count:
        words += f", of which {count - taken} more are left out"
    span = range(taken)
    digest = sha256(path)
    if path.suffix.lower() in LATENTS:
        return Stored(path, span, digest), words
    return Filmed(path, span, size, fps, fit, still, digest), words


def recalled(entry: Mapping[str, Any], config: "RunConfig") -> Given:
    """What `Given.describe` told a record.

    Raises:
        UserError: its file is gone, or another now.
    """
    path = Path(entry["file"])
    if not path.is_file() or sha256(path) != entry["sha256"]:
        raise UserError(f"{path}, from which the video began, is gone or another now; put it back")
    frames = range(*entry["frames"])
    if "fit" not in entry:
        return Stored(path, frames, entry["sha256"], entry.get("seed"))
    size = (config.width, config.height)
    return Filmed(path, frames, size, config.fps, entry["fit"], is_picture(path), entry["sha256"])


def _stored(path: Path) -> torch.Tensor:
    """[F, C, H, W], mapped."""
    if path.suffix.lower() == ".npy":
        return open_latents(path)
    return open_corpus_file(path)


def _count_latents(path: Path, format: LatentFormat, size: tuple[int, int]) -> int:
    latents = _stored(path)
    width, height = size
    wanted = format.shape(height, width)
    if tuple(latents.shape[1:]) != wanted:
        found = " x ".join(map(str, latents.shape[1:]))
        due = " x ".join(map(str, wanted))
        raise UserError(f"start {path} has latents of {found} where this video has {due}; set height and width to fit")
    return len(latents)
