"""Files that are either whole or absent: atomic writes, digests, folders checked before work."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.temporary import create_temporary, sweep

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_ROOM_REMEDY = "free some space or choose another folder"
FULL_BELOW = 1 << 20  # bytes free; a failed write on such a disk failed for want of room
# How libraries say that a write failed, when they do not raise an OSError: PyTorch's archives, Rust's std::io.
WRITER_FAILED = re.compile(r"PytorchStreamWriter|unexpected pos|file write failed|\(os error (\d+)\)")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place when the block succeeds.

    A kill at any moment leaves either the old file or the new one. The temporary name is this process's
    alone and ends in `path`'s suffix, so writers that look at the suffix still work. A link at `path` is
    replaced, not followed.

    Raises:
        UserError: the file cannot be written; other errors of the block pass through.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = create_temporary(path)
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(
            temporary, mode
        )  # a writer may have put a file of its own there, as safetensors does, for itself alone
        publish(temporary, path)
    except Exception as error:
        reason = write_fault(error, path, temporary)
        if reason is None:
            raise
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # what stopped the write may stop this too, and was already said
                temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, once its bytes are on the disk."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_fault(error: BaseException, path: Path, temporary: Path | None = None) -> str | None:
    """Why `path` could not be written and what to do, in words; None where `error` is about something else.

    Args:
        temporary: the file that stood for `path` while it was written, where there was one already.
    """
    if isinstance(error, UserError):
        return None
    fault = _os_error(error)
    if fault is not None:
        named = fault.filename
        elsewhere = temporary is not None and named is not None and str(named) not in (str(temporary), str(path))
        if elsewhere and fault.errno not in NO_ROOM:
            return None
        for folder in path.parents:
            if folder.is_file():
                return f"{folder} is no folder; choose another folder"
        return f"{fault.strerror or fault}; {_remedy(fault.errno)}"
    said = WRITER_FAILED.search(str(error))
    if said is None:
        return None
    code = int(said[1]) if said[1] else _likely_errno(path)
    return f"{os.strerror(code)}; {_remedy(code)}"


def _os_error(error: BaseException) -> OSError | None:
    """The failed system call behind an error: itself, or what it was raised from or while handling."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _likely_errno(path: Path) -> int:
    free = shutil.disk_usage(path.parent).free
    return errno.ENOSPC if free < FULL_BELOW else errno.EIO


def _remedy(code: int | None) -> str:
    if code in NO_ROOM:
        return NO_ROOM_REMEDY
    if code in NO_RIGHT:
        return "choose a folder that you may write to"
    return "choose another folder"


def to_json(content: Any) -> str:
    """Indented JSON of `content`. NaN and infinity, for which JSON has no words, become null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as `to_json` puts it, atomically."""
    text = to_json(content)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def require_file(path: str | Path, what: str, remedy: str) -> Path:
    """`path` as a Path, or a `UserError` that says what is missing and what to do about it."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {path} {'is not a file' if path.exists() else 'does not exist'}; {remedy}")
    return path


def require_writable(folder: str | Path, need_bytes: int = 0) -> Path:
    """Create `folder`, prove that a file can be written there, and sweep what killed processes left in it.

    Args:
        need_bytes: free space to ask for; where it lacks, nothing is created.
    """
    folder = Path(folder)
    try:
        free = shutil.disk_usage(_existing(folder)).free
        if free < need_bytes:
            raise UserError(
                f"output folder {folder} has {free / 1e6:.0f} MB free and about {need_bytes / 1e6:.0f} MB are "
                "needed; free some space or choose another"
            )
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        create_temporary(folder / "probe").unlink()
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise UserError(f"output folder {folder} is not writable: {reason}; choose another") from error
    except ValueError as error:  # a zero byte in the name
        raise UserError(f"output folder {str(folder)!r} is no name of a folder: {error}; choose another") from error
    return folder


@contextmanager
def gone_if_empty(folder: Path) -> Iterator[None]:
    """Take away again what is made of `folder` and those above it, where nothing came to lie in it."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in absent:
            with suppress(OSError):  # it holds files, or was never made
                path.rmdir()


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there, or `folder` itself."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
