"""The exception whose message a user reads, and the function through which every entry point runs."""

import atexit
import errno
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import NoReturn

from utils.stop import stop

REPORT = "please report it with what DEBUG=1 prints, among the project's issues"
DOWNLOAD = "'bash download.sh' gets the published files; see README.md, 'Real weights'"  # what to do without a file
# Loggers that warn of torchao's optional kernels wherever it is installed, whether or not a run uses it.
CHATTER = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao")
LOST = "error: a process that this one works with has ended, on another machine; the same command goes on"
LOST_STATUS = 3  # of a process that ended for no reason of its own
PIPE_STATUS = 141  # as a shell has it of a program that SIGPIPE ended
to_launcher: list[int] = []  # the pipe by which a process that `utils.launch` started hands over its last line


class UserError(Exception):
    """Bad input: one line that names the value, the file and the remedy."""


class LostPeer(Exception):
    """Another process, without which this one cannot go on, has ended; that one says why."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'seed'?"` for a near miss among `choices`, or an empty string."""
    near = get_close_matches(word, list(choices), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def first_line(error: Exception) -> str:
    """What an error of a library says, cut to a part of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def run(main: Callable[[], None]) -> None:
    """Run an entry point: whatever ends it is one line on stderr and an exit status.

    Status 2 is a `UserError`, 130 or 143 a stop from outside, 3 the end of another process, 1 anything else; 141,
    without a line, the end of who read its output. `DEBUG=1` shows the traceback as well. Of processes that a launcher
    started together, one says what several have to say.
    """
    debug = os.environ.get("DEBUG") == "1"
    if not debug:
        for name in CHATTER:
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with stop.listening():
            main()
    except SystemExit:
        raise
    except BaseException as error:
        status, line = explain(error)
        if isinstance(error, BrokenPipeError) and nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be flushed
            sys.exit(PIPE_STATUS)
        if debug:
            traceback.print_exc()
        say_once(line)
        if in_group():
            leave(status)
        sys.exit(status)
    if in_group():
        leave(0)


def in_group() -> bool:
    """Whether this process has met others through torch.distributed."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def leave(status: int) -> NoReturn:
    """End this process; its libraries are not taken down, as that can take for ever where processes have met."""
    atexit._run_exitfuncs()  # temporary files and processes that load data
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it
            stream.flush()
    os._exit(status)


def explain(error: BaseException) -> tuple[int, str]:
    """Exit status of what ended a run, and the line to say of it."""
    if stop.asked or isinstance(error, KeyboardInterrupt):  # a stop can surface as another error, of a worker say
        return stop.status, stop.line()
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, LostPeer):
        return LOST_STATUS, LOST
    if isinstance(error, MemoryError):
        return 1, "error: the machine's memory is full; make less at once, or end what else runs"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for its name
        return 1, (
            "error: the GPU's memory is full; the plan printed at the start says what takes it; use "
            "memory: low, vae: tiny, or a lower batch_size, local_attn_size, height or width"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return 1, f"error: no space left{where}; free some, then the same command goes on"
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return 1, f"error: unforeseen {what} ({os.path.basename(last.filename)}:{last.lineno}); {REPORT}"


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has ended, as `head` does when it has enough."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def muted() -> Iterator[None]:
    """Keep this process's stderr silent, also that of libraries in C or Rust, which print pages before they raise."""
    if os.environ.get("DEBUG") == "1":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def say_once(line: str) -> None:
    """Print a line to stderr, by way of the launcher where there is one: it prints the same line once."""
    for pipe in to_launcher:
        try:
            os.write(pipe, f"{line}\n".encode())
            return
        except OSError:  # the launcher is gone
            pass
    print(line, file=sys.stderr, flush=True)
