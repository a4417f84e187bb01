"""Whether a downloaded file is whole, told from its first and last bytes without reading all of it."""

import json
import zipfile
from pathlib import Path

ZIP = b"PK\x03\x04"
LFS_POINTER = b"version https://git-lfs"


def fault(path: Path) -> str | None:
    """What is wrong with a file, in words that follow its name; None if nothing can be seen to be.

    `.safetensors` state their size in their header; PyTorch's archives have a directory at their end;
    other files are only looked at for what commonly lies in their place.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "is empty"
    if head.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself"
    if path.suffix == ".safetensors":
        return _safetensors(path, size)
    if head.startswith(ZIP):
        return _archive(path, size)
    if path.suffix == ".json":
        return _json(path)
    return None


def _safetensors(path: Path, size: int) -> str | None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            foreign = length > 100_000_000  # the format's own bound
            return "is no safetensors file" if foreign else f"is truncated: {size:,} bytes end within its header"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return "is no safetensors file"
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        return f"is truncated: it has {size:,} of {whole:,} bytes"
    return None if size == whole else f"has {size:,} bytes where its header says {whole:,}"


def _archive(path: Path, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path):
            return None
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"is truncated: its {size:,} bytes lack the directory at the end"


def _json(path: Path) -> str | None:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return "is not valid JSON; it is truncated or another file"
    return None
