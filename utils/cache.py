"""Small files that spare work on later runs, best effort: without them the work is done again."""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from utils.files import atomic, sha256
from utils.optional import best_effort
from utils.temporary import sweep

DIGEST = re.compile(r"[0-9a-f]{64}")


def write_cached(path: Path, write: Callable[[Path], None]) -> None:
    """Keep a file in a cache: whole, or not at all; where it cannot be written, one warning says so.

    Args:
        path: its folder is made when needed, and swept of what killed processes left in it.
        write: writes the content to the path that it is given.
    """
    with best_effort("writing to the cache", "the run goes on without it"):
        sweep(path.parent)
        with atomic(path) as temporary:
            write(temporary)


def sha256_once(path: Path, folder: Path | None) -> str:
    """`sha256`, kept in `folder` for as long as the file's place, size and times stay what they are.

    Args:
        folder: made when needed; where it cannot be written, one warning says so. None keeps nothing.
    """
    if folder is None:
        return sha256(path)
    stat = path.stat()
    name = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    note = folder / hashlib.sha256(name.encode()).hexdigest()
    kept = None
    with suppress(OSError, UnicodeDecodeError):  # not there yet, or no place to keep anything
        kept = DIGEST.fullmatch(note.read_text())
    if kept is not None:
        return kept[0]
    digest = sha256(path)
    write_cached(note, lambda temporary: temporary.write_text(digest))
    return digest
