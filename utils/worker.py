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

from utils import errors

PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


def main() -> None:
    parent, pipe, module = sys.argv[1:4]
    del sys.argv[1:4]
    end_with(int(parent))
    errors.to_launcher.append(int(pipe))
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
    errors.leave(status)


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
