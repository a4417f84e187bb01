"""A take's frames as a page shows them: JPEG pictures, the frames of each block in one file.

The files can be written while they are read, and a block that comes again replaces its file. Layout of a file:
the number of pictures, then the length of each, as 32-bit little-endian integers, then the pictures.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.files import atomic

WIDEST = 640  # pixels; larger frames are shown smaller
QUALITY = 88


class Preview:
    """The folder of one take's pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, block: int) -> Path:
        return self.folder / f"{block:06d}.jpgs"

    def write(self, block: int, frames: np.ndarray) -> None:
        """Keep the frames [T, H, W, 3] of a block, in bytes."""
        pictures = [to_jpeg(frame) for frame in frames]
        with atomic(self.path(block)) as temporary:
            temporary.write_bytes(pack(pictures))

    def read(self, block: int) -> bytes | None:
        """The file of a block; None where it is not there."""
        try:
            return self.path(block).read_bytes()
        except OSError:
            return None

    def picture(self, block: int, number: int) -> bytes | None:
        """One picture of a block."""
        content = self.read(block)
        if content is None:
            return None
        pictures = unpack(content)
        return pictures[number] if number < len(pictures) else None


def to_jpeg(frame: np.ndarray) -> bytes:
    """A frame [H, W, 3] of bytes, at most `WIDEST` pixels wide."""
    picture = Image.fromarray(frame)
    if picture.width > WIDEST:
        height = round(picture.height * WIDEST / picture.width)
        picture = picture.resize((WIDEST, height), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def pack(pictures: Sequence[bytes]) -> bytes:
    lengths = [len(picture) for picture in pictures]
    return struct.pack(f"<{len(pictures) + 1}I", len(pictures), *lengths) + b"".join(pictures)


def unpack(content: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<I", content)
    lengths = struct.unpack_from(f"<{count}I", content, 4)
    pictures = []
    place = 4 * (count + 1)
    for length in lengths:
        pictures.append(content[place : place + length])
        place += length
    return pictures
