"""A run claims the folder that it writes to; runs of the same settings may share it.

Processes hold locks on hidden files. The system releases a lock when its process ends, however it ends, so
nothing is left in the way of the next run. The locks of `flock` hold between machines on NFS too.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import require_writable, write_fault
from utils.optional import warn_once

CLAIM = ".claim"
BUSY = {errno.EWOULDBLOCK, errno.EACCES}
ATTEMPTS = 1000  # of a lock that others hold for microseconds at a time


class Claim:
    """A folder in use by this process; see `claim`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: dict[str, int] = {}

    def take(self, name: str) -> bool:
        """Take the making of one file on; False where another live process is making it.

        Whether it is finished already is to be looked at after it was taken, as another process may have
        finished it just before. It is given back by `give_back`, or when the claim ends.
        """
        path = self._lock_file(name)
        while True:
            descriptor = _open(path)
            if not _lock(descriptor, fcntl.LOCK_EX):
                os.close(descriptor)
                return False
            if _is_at(descriptor, path):
                self.taken[name] = descriptor
                return True
            os.close(descriptor)  # it was given back, and its lock file taken away, between the two lines

    def give_back(self, name: str) -> None:
        """The file is finished, or given up."""
        descriptor = self.taken.pop(name)
        with suppress(OSError):  # a lock file that stays is in nobody's way
            self._lock_file(name).unlink()
        os.close(descriptor)

    def end(self) -> None:
        for name in list(self.taken):
            self.give_back(name)

    def _lock_file(self, name: str) -> Path:
        return self.folder / f"{CLAIM}-{blake2b(name.encode(), digest_size=8).hexdigest()}"


@contextmanager
def claim(folder: str | Path, identity: dict[str, Any]) -> Iterator[Claim]:
    """Use `folder` for what `identity` says is made there.

    Any number of processes with equal identities share a folder: those of one run, or of runs started apart,
    which then take the files on one by one with `Claim.take`. The folder is made, and swept of what killed
    processes left in it.

    Args:
        identity: what decides the files' content, as JSON takes it.

    Raises:
        UserError: a live process uses the folder for something else, or it cannot be written to.
    """
    folder = require_writable(folder)
    path = folder / CLAIM
    descriptor = _join(path, _canonical(identity))
    held = Claim(folder)
    try:
        yield held
    finally:
        held.end()
        # The last process takes the file away; a lock on all of it says that this is the last.
        if _lock(descriptor, fcntl.LOCK_EX) and _is_at(descriptor, path):
            with suppress(OSError):
                path.unlink()
        os.close(descriptor)


def _join(path: Path, identity: dict[str, Any]) -> int:
    """A descriptor with a shared lock on the claim file at `path`, which says `identity`.

    Who finds the file unlocked is alone and may write it. Then, and otherwise too, it is read under the shared
    lock: while that is held, nobody writes.
    """
    for _ in range(ATTEMPTS):
        descriptor = _open(path)
        try:
            is_alone = _lock(descriptor, fcntl.LOCK_EX)
            if is_alone and _is_at(descriptor, path):
                _sweep_locks(path.parent)
                _write(descriptor, identity)
            if _lock(descriptor, fcntl.LOCK_SH) and _is_at(descriptor, path):
                there = _read(descriptor)
                if there is not None:
                    _require_same(path.parent, identity, there)
                    kept = descriptor
                    descriptor = None
                    return kept
        except OSError as error:
            raise UserError(f"cannot write {path}: {write_fault(error, path)}") from error
        finally:
            if descriptor is not None:
                os.close(descriptor)
        time.sleep(0.001)
    raise UserError(f"{path} is locked by another process; stop it or choose another output folder")


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link, which may lead anywhere; delete it") from error
        raise UserError(f"cannot write {path}: {write_fault(error, path)}") from error


def _lock(descriptor: int, kind: int) -> bool:
    """Lock a file at once, or change the lock; False where another process's lock forbids it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        warn_once("this file system has no locks; see that no other run writes to the output folder")
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name; its last holder may have taken it away."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _write(descriptor: int, identity: dict[str, Any]) -> None:
    content = {"process": os.getpid(), "host": socket.gethostname(), "identity": identity}
    text = json.dumps(content).encode()
    os.ftruncate(descriptor, 0)
    if os.pwrite(descriptor, text, 0) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(descriptor: int) -> dict[str, Any] | None:
    """What a claim file says; None where it says nothing, as one that another process just made."""
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    try:
        return json.loads(content)
    except ValueError:
        return None


def _canonical(identity: dict[str, Any]) -> dict[str, Any]:
    """As it is when read back."""
    return json.loads(json.dumps(identity))


def _require_same(folder: Path, here: dict[str, Any], claimed: dict[str, Any]) -> None:
    there = claimed["identity"]
    for key in sorted({*here, *there}):
        if here.get(key) != there.get(key):
            raise UserError(
                f"{folder} is in use by process {claimed['process']} on {claimed['host']}, whose {key} is "
                f"{_short(there.get(key))} where this run has {_short(here.get(key))}; wait until it has ended, or "
                "choose another output folder"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _sweep_locks(folder: Path) -> None:
    """Take away lock files of dead processes. To be done alone in the folder: a file that is looked at seems taken."""
    for path in folder.glob(f"{CLAIM}-*"):
        with suppress(OSError):
            path.unlink()
