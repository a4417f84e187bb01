"""One of the processes that `utils.launch` starts: `python -m utils.worker PARENT PIPE MODULE [arguments]`.

It runs the module as a program, hands its last line to the pipe, and ends when its parent does, however that ends.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from contextlib import suppress

from utils import errors
from utils.stop import stop

ENDED = "process {} ended with status {}"  # told to the launcher
PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


def main() -> None:
    parent, pipe, module = sys.argv[1:4]
    del sys.argv[1:4]
    end_with(int(parent))
    errors.to_launcher.append(int(pipe))
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        tell_end(0)
    except SystemExit as end:
        tell_end(end.code or 0)
        raise
    finally:
        if stop.asked:  # all is said; what libraries complain of while they are taken down is nobody's news
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def tell_end(status: int) -> None:
    """Tell the launcher that all is done and said: it does not wait for ever then for what is taken down."""
    for pipe in errors.to_launcher:
        with suppress(OSError):  # the launcher is gone
            os.write(pipe, f"{ENDED.format(os.getpid(), status)}\n".encode())
    distributed = sys.modules.get("torch.distributed")
    if status == 0 and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def end_with(parent: int) -> None:
    """Have this process killed when the process `parent` is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    errors.run(main)
