"""Launchers and modules run as a user runs them; the tests' own environment serves as the active one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ACTIVE = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def command(*arguments: object, launcher: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen:
    """Start a launcher's command in a session of its own, as a terminal does."""
    return start("bash", ROOT / launcher, *arguments, cwd=cwd, **environment)


def launched(*arguments: object, processes: object = 1, folder: Path, **environment: str) -> subprocess.Popen:
    """Start a module that lies in `folder` as several processes."""
    path = {"PYTHONPATH": f"{ROOT}:{folder}"}
    words = [sys.executable, "-m", "utils.launch", "--nproc-per-node", processes, *arguments]
    return start(*words, cwd=folder, **path, **environment)


def start(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | ACTIVE | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_signals,
    )


def _hear_signals() -> None:
    """As a terminal starts programs; a shell's background jobs ignore some signals, and so do the tests run there."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
