"""Training data: chunks of consecutive frames out of a folder of latent files, mapped and not read whole."""

import math
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from utils.advice import advise, pages_around
from utils.complete import problem
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
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.files), generator=generator).tolist()
        order = order[: max(1, round(share * len(order)))]
        held_out = 0
        if val_split:
            held_out = min(max(1, round(val_split * len(order))), len(order) - 1)
        held = [self.files[i] for i in sorted(order[:held_out])]
        used = [self.files[i] for i in sorted(order[held_out:])]
        return used, held


def scan(folder: str | Path, latent_shape: tuple[int, int, int], seq_len: int, strict: bool = False) -> Corpus:
    """Look at the header of every latent file of a folder; a file that does not fit is left out.

    Args:
        latent_shape: (C, H, W) that the model is made for.
        strict: stop at the first file that does not fit.

    Raises:
        UserError: no folder, no files, or none that fits.
    """
    paths = find_latents(folder)
    files = []
    skipped = []
    for path in paths:
        try:
            latents = open_latents(path)
            if wrong := problem(path):
                raise UserError(f"latent file {path} {wrong}; make it again")
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
        raise UserError(
            f"data folder {folder} {state}; make a corpus with 'bash generate_latent.sh', or get a small one with "
            "'bash download.sh samples' and set data_dir=toydatasets"
        )
    return paths


def open_latents(path: str | Path) -> Tensor:
    """The tensor [F, C, H, W] of a latent file, mapped: its pages are read when they are used.

    Raises:
        UserError: no such file, damaged, or anything but an ordinary tensor of floating-point numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"latent file {path} is {'no file' if path.exists() else 'a link to nothing'}; remove it")
    try:
        latents = _load(path)
    except PermissionError as error:
        raise UserError(f"latent file {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # of many kinds: a damaged pickle names types, keys and places that are not there
        raise UserError(f"latent file {path} is truncated or no tensor file; make it again") from error
    if not _is_latents(latents):
        raise UserError(
            f"latent file {path} holds {_describe(latents)} and not a tensor [frames, channels, height, width] of "
            "floating-point numbers"
        )
    return latents


def _load(path: Path) -> Any:
    is_mappable = zipfile.is_zipfile(path)  # PyTorch's format of before 2020 is not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong with a file is said in one line
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)


def _is_latents(content: Any) -> bool:
    if not isinstance(content, Tensor) or content.ndim != 4 or not content.is_floating_point():
        return False
    return content.layout == torch.strided and content.device.type == "cpu" and not content.is_quantized


def _describe(content: Any) -> str:
    """What was found in a file, in few words."""
    if not isinstance(content, Tensor):
        return f"a {type(content).__name__}"
    words = [str(content.dtype).removeprefix("torch.")]
    if content.layout != torch.strided:
        words.append("sparse")
    if content.device.type != "cpu":
        words.append("without values")
    return f"{list(content.shape)} of {' '.join(words)}"


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
                chunk = self._chunk(path, draw)
            except UserError as error:
                complaint = complaint or str(error)
            else:
                return chunk, complaint
        raise UserError(f"no chunk of any file can be used, for example: {complaint}")

    def _chunk(self, path: Path, draw: int) -> Tensor:
        latents = open_latents(path)
        choices = latents.shape[0] - self.seq_len + 1
        if choices < 1:  # it was long enough at the start
            raise UserError(f"latent file {path} has changed and is shorter than seq_len {self.seq_len} now")
        start = draw % choices
        part = latents[start : start + self.seq_len]
        # Left alone, the kernel may read megabytes around each page that is used.
        advise(pages_around(latents), "MADV_RANDOM")
        advise(pages_around(part), "MADV_WILLNEED")
        chunk = part.to(torch.float32, copy=True)
        if not chunk.sum().isfinite():  # a tenth of the time of looking at every value
            raise UserError(f"latent file {path} holds NaN, infinity or immense numbers")
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
        self.files = files
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.skip = 0

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


def _fits(latents: Tensor, path: Path, latent_shape: tuple[int, int, int], seq_len: int) -> None:
    frames = latents.shape[0]
    shape = tuple(latents.shape[1:])
    if shape != latent_shape:
        raise UserError(
            f"{path} holds latents of {_size(shape)} and the config asks for {_size(latent_shape)} "
            "(in_channels, spatial_h, spatial_w)"
        )
    if frames < seq_len:
        raise UserError(f"{path} has {frames} frames and seq_len is {seq_len}")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
