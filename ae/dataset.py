"""Training data: chunks of consecutive frames out of a folder of latent files, mapped and not read whole."""

import ctypes
import math
import mmap
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from utils.errors import UserError

PATTERN = "latent_*.pt"


@dataclass(frozen=True)
class Corpus:
    """The usable latent files of a folder, and why the others are not."""

    files: tuple[Path, ...]
    skipped: tuple[str, ...]

    def split(self, val_split: float, seed: int, share: float = 1.0) -> tuple[list[Path], list[Path]]:
        """Files to train on and files held out; the same for the same seed, on any machine.

        Args:
            val_split: part of the files that is held out: at least one file, unless it is 0 or there is one only.
            share: part of the corpus to use at all.
        """
        order = torch.randperm(len(self.files), generator=torch.Generator().manual_seed(seed)).tolist()
        order = order[: max(1, round(share * len(order)))]
        held_out = min(max(1, round(val_split * len(order))), len(order) - 1) if val_split else 0
        held, used = sorted(order[:held_out]), sorted(order[held_out:])
        return [self.files[i] for i in used], [self.files[i] for i in held]


def scan(folder: str | Path, latent_shape: tuple[int, int, int], seq_len: int, strict: bool = False) -> Corpus:
    """Look at the header of every latent file of a folder; a file that does not fit is left out.

    Args:
        latent_shape: (C, H, W) that the model is made for.
        strict: stop at the first file that does not fit.

    Raises:
        UserError: no folder, no files, or none that fits.
    """
    paths = find_latents(folder)
    files, skipped = [], []
    for path in paths:
        try:
            latents = open_latents(path)
            _fits(latents, path, latent_shape, seq_len)
        except UserError as error:
            if strict:
                raise
            skipped.append(str(error))
        else:
            files.append(path)
    if not files:
        raise UserError(f"none of the {len(paths)} files in {folder} can be used, for example: {skipped[0]}")
    return Corpus(tuple(files), tuple(skipped))


def find_latents(folder: str | Path) -> list[Path]:
    """The latent files of a folder, in order of their names; at least one."""
    folder = Path(folder)
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        state = f"holds no {PATTERN}" if folder.is_dir() else "is not a folder"
        raise UserError(f"data folder {folder} {state}; make a corpus with generate_latent.sh, or name another")
    return paths


def open_latents(path: str | Path) -> Tensor:
    """The tensor [F, C, H, W] of a latent file, mapped: its pages are read when they are used."""
    try:
        latents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise UserError(f"latent file {path} cannot be read: {error.strerror}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UserError(f"latent file {path} is truncated or no tensor file; make it again") from error
    if not isinstance(latents, Tensor) or latents.ndim != 4 or not latents.is_floating_point():
        found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise UserError(f"latent file {path} holds {found} and not a tensor [frames, channels, height, width]")
    return latents


class LatentChunks(Dataset):
    """`dataset[file, draw]` -> (chunk [seq_len, C, H, W] float32, complaint).

    `draw` is any integer and decides where in the file the chunk starts. A chunk that cannot be used is
    replaced by the next file's and named in `complaint`, which is otherwise empty: worker processes return
    what they found, and the trainer counts or stops.
    """

    def __init__(self, files: list[Path], seq_len: int):
        self.files = files
        self.seq_len = seq_len

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, str]:
        index, draw = item
        complaint = ""
        for path in self.files[index:] + self.files[:index]:
            try:
                return self._chunk(path, draw), complaint
            except UserError as error:
                complaint = complaint or str(error)
        raise UserError(f"no chunk of any file can be used, for example: {complaint}")

    def _chunk(self, path: Path, draw: int) -> Tensor:
        latents = open_latents(path)
        start = draw % (latents.shape[0] - self.seq_len + 1)
        part = latents[start : start + self.seq_len]
        _advise(latents, "MADV_RANDOM")
        _advise(part, "MADV_WILLNEED")
        chunk = part.to(torch.float32, copy=True)
        if not chunk.sum().isfinite():  # a tenth of the time of looking at every value
            raise UserError(f"latent file {path} holds NaN or infinity")
        return chunk


class Batches(Sampler[list[tuple[int, int]]]):
    """The (file, draw) pairs of one epoch's batches, as they fall to one of `world` processes.

    They follow from the seed and the epoch alone, so a run can resume at any batch, and the batches are the
    same whatever the number of processes or workers. The last batch is filled up from the epoch's
    start when it would not share out evenly.

    Attributes:
        epoch: set before each pass.
        skip: batches to leave out at the start, set when a run resumes within an epoch.
    """

    def __init__(self, files: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.files, self.batch_size, self.seed, self.rank, self.world = files, batch_size, seed, rank, world
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return math.ceil(self.files / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.files, generator=generator).tolist()
        draws = torch.randint(2**31, (self.files,), generator=generator).tolist()
        pairs = list(zip(order, draws, strict=True))
        for number in range(self.skip, len(self)):
            batch = pairs[number * self.batch_size : (number + 1) * self.batch_size]
            while len(batch) % self.world:
                batch += pairs[: self.world - len(batch) % self.world]
            yield batch[self.rank :: self.world]


def _advise(mapped: Tensor, advice: str) -> None:
    """Tell the kernel how a mapped tensor will be read; left alone, it may read megabytes around each page of it."""
    if hasattr(mmap, advice):  # not on every system, and never needed
        start = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        length = mapped.data_ptr() + mapped.nbytes - start
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), getattr(mmap, advice))


def _fits(latents: Tensor, path: Path, latent_shape: tuple[int, int, int], seq_len: int) -> None:
    frames, *shape = latents.shape
    if tuple(shape) != latent_shape:
        size = " x ".join
        raise UserError(
            f"{path} holds latents of {size(map(str, shape))} and the config asks for {size(map(str, latent_shape))} "
            "(in_channels, spatial_h, spatial_w)"
        )
    if frames < seq_len:
        raise UserError(f"{path} has {frames} frames and seq_len is {seq_len}")
