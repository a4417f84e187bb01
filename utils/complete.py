"""Whether a downloaded file is whole, judged by its first and last bytes."""

import json
import zipfile
from pathlib import Path

from utils.errors import first_line

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"  # of PyTorch's format before 2020
CHECKED = 1 << 20  # bytes; parts of an archive up to this size are held against their checksums
LARGEST_HEADER = 100_000_000  # bytes; the safetensors format's own bound
LFS_POINTER = b"version https://git-lfs"


def problem(path: Path) -> str | None:
    """What is wrong with a file, in words that follow its name; None if nothing can be seen to be.

    `.safetensors` state their size in their header. PyTorch's archives have a directory at their end and a checksum
    of each part, which is compared for small parts. Other files are only looked at for what commonly lies in their
    place.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "is empty"
    if head.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself"
    if head.startswith(ZIP):
        return _archive(path, size)
    if is_safetensors(path) or (path.suffix == ".safetensors" and not head.startswith(PICKLE)):
        return _safetensors(path, size)
    if path.suffix == ".json":
        return _json(path)
    return None


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does, whatever its name: the length of a header, then JSON."""
    with open(path, "rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and length <= LARGEST_HEADER


def _safetensors(path: Path, size: int) -> str | None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            if length > LARGEST_HEADER:
                return "is no safetensors file"
            return f"is truncated: {size:,} bytes end within its header"
        try:
            header = json.loads(file.read(length))
            ends = [0]
            for name, entry in header.items():
                if name != "__metadata__":
                    ends.append(int(entry["data_offsets"][1]))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            return "is no safetensors file"
    whole = 8 + length + max(ends)
    if size < whole:
        return f"is truncated: it has {size:,} of {whole:,} bytes"
    return None if size == whole else f"has {size:,} bytes where its header says {whole:,}"


def _archive(path: Path, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.file_size <= CHECKED:
                    archive.read(part)
            return None
    except Exception as error:  # of many kinds: what a directory says whose bytes are others
        if not zipfile.is_zipfile(path):
            return f"is truncated: its {size:,} bytes lack the directory at the end"
        return f"is damaged ({first_line(error)})"


def _json(path: Path) -> str | None:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "is not valid JSON; it is truncated or another file"
    return None
