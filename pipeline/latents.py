"""A video's latents in a file that grows block by block: NumPy's format, [F, C, H, W] in float32.

The header says how many frames there will be; until they are there the file is shorter. It can be read while
it is written, and every block that is whole counts. When it is finished, `numpy.load` reads it.
"""

import os
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError
from utils.files import atomic, write_fault

DTYPE = np.dtype("<f4")


class LatentFile:
    """A file of latents that this process writes.

    Args:
        shape: [F, C, H, W] when it is finished.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self.path, self.shape = path, shape
        header = {"descr": DTYPE.str, "fortran_order": False, "shape": tuple(shape)}
        if not path.exists():
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
        self.offset = _header(path)[1]
        self.frame_bytes = int(np.prod(shape[1:])) * DTYPE.itemsize

    @property
    def frames(self) -> int:
        """Whole frames that are there."""
        return (self.path.stat().st_size - self.offset) // self.frame_bytes

    def write(self, start: int, latents: torch.Tensor) -> None:
        """Write frames [f, C, H, W] from place `start` on; what was there from it on is gone."""
        assert start <= self.frames, "blocks come in order"
        content = np.ascontiguousarray(latents.numpy(), DTYPE)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "r+b") as file:
                file.truncate(self.offset + start * self.frame_bytes)
                file.seek(0, os.SEEK_END)
                file.write(content.tobytes())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {write_fault(error, self.path)}") from error


def open_latents(path: Path) -> torch.Tensor:
    """The whole frames of a file of latents, mapped: [F, C, H, W] in float32.

    Raises:
        UserError: it is no such file.
    """
    try:
        shape, offset = _header(path)
        frame_bytes = int(np.prod(shape[1:])) * DTYPE.itemsize
        frames = min((path.stat().st_size - offset) // frame_bytes, shape[0])
        if not frames:
            return torch.empty(0, *shape[1:])
        # A private mapping: PyTorch wants memory that may be written to, and the file stays as it is.
        return torch.from_numpy(np.memmap(path, DTYPE, "c", offset, (frames, *shape[1:])))
    except (OSError, ValueError, EOFError, ZeroDivisionError) as error:
        raise UserError(f"{path} is no file of latents; it is written beside a video as NAME.latents.npy") from error


def _header(path: Path) -> tuple[tuple[int, ...], int]:
    """The shape in a file's header, and where its numbers begin."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if len(shape) != 4 or is_fortran or dtype != DTYPE:
            raise ValueError(f"{shape} of {dtype}")
        return shape, file.tell()
