"""Files that are either whole or absent: atomic writes, digests, folders checked before work."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place when the block succeeds.

    A kill at any moment leaves either the old file or the new one. The temporary name starts
    with a dot and ends in `path`'s suffix, so writers that look at the suffix still work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()


def sha256_once(path: Path, folder: Path | None) -> str:
    """`sha256`, kept in `folder` for as long as the file's place, size and times stay what they are."""
    if folder is None:
        return sha256(path)
    stat = path.stat()
    name = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    note = folder / hashlib.sha256(name.encode()).hexdigest()
    if note.is_file() and len(digest := note.read_text()) == 64:
        return digest
    digest = sha256(path)
    with suppress(OSError, UserError), atomic(note) as temporary:  # a help, no need
        temporary.write_text(digest)
    return digest


def require_file(path: str | Path, what: str, remedy: str) -> Path:
    """`path` as a Path, or a `UserError` that says what is missing and what to do about it."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {path} {'is not a file' if path.exists() else 'does not exist'}; {remedy}")
    return path


def require_writable(folder: str | Path, need_bytes: int = 0) -> Path:
    """Create `folder` and prove that a file can be written there, with `need_bytes` to spare."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe"):
            pass
    except OSError as error:
        raise UserError(f"output folder {folder} is not writable: {error.strerror}; choose another") from error
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise UserError(
            f"output folder {folder} has {free / 1e6:.0f} MB free and about {need_bytes / 1e6:.0f} MB are needed; "
            "free some space or choose another"
        )
    return folder
