"""Names of unfinished files: no two processes share one, and files of dead processes are found and removed."""

import os
import re
import secrets
import socket
import time
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

# .MACHINE-PROCESS-ITS_START-RANDOM.partial.SUFFIX
NAME = re.compile(r"\.(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{16}\.partial(\..*)?")
FORGOTTEN_AFTER = 24 * 3600  # seconds since the last write, for files of processes that cannot be asked


def create_temporary(path: Path) -> Path:
    """Create an empty file beside `path` that stands for it until it is finished, and return its path.

    The name is hidden, of bounded length, ends in `path`'s suffix and says which process it belongs to.
    """
    pid = os.getpid()
    owner = f"{machine()}-{pid}-{started(pid) or 0}"
    temporary = path.with_name(f".{owner}-{secrets.token_hex(8)}.partial{path.suffix}")
    # Never through a file or link that lies there already.
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY
    os.close(os.open(temporary, flags, 0o666))
    return temporary


def sweep(folder: Path) -> None:
    """Delete what processes that are no more left unfinished in `folder`; nothing where there is no folder."""
    try:
        paths = list(folder.iterdir())
    except OSError:  # who goes on to write there is told
        return
    for path in paths:
        name = NAME.fullmatch(path.name)
        if name is not None and _is_abandoned(path, name):
            with suppress(OSError):  # another process sweeps too, or it is not ours to delete
                path.unlink()


def _is_abandoned(path: Path, name: re.Match) -> bool:
    if name["machine"] != machine():
        try:
            return time.time() - path.lstat().st_mtime > FORGOTTEN_AFTER
        except OSError:
            return False
    start = started(int(name["pid"]))
    if start is None:
        return True
    is_known = start > 0
    return is_known and start != int(name["start"])


@cache
def machine() -> str:
    """What tells this machine, since it was started, from others: 12 hexadecimal digits.

    Containers count as machines of their own, since they number their processes apart.
    """
    parts = [socket.gethostname()]
    for source in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with suppress(OSError):
            parts.append(Path(source).read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()


def started(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None where there is no such process.

    A number given to a new process is told from the old one by it. 0 where the system does not tell.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state_and_on = stat.rpartition(")")[2].split()
    if state_and_on[0] == "Z":  # ended, and only not yet taken note of by its parent
        return None
    return int(state_and_on[19])
