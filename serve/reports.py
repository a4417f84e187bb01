"""The evaluation's report of two takes, made beside the work on further takes."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from serve.takes import Take
from utils.errors import UserError
from utils.paths import ROOT

NICE = 10  # the takes come first


class Reports:
    """Reports by the numbers of their two takes.

    Args:
        folder: theirs.
        tell: called when one is finished.
    """

    def __init__(self, folder: Path, tell: Callable[[], None]) -> None:
        self.folder, self.tell = folder, tell
        self.lock = threading.Lock()
        self.present: dict[str, str] = {}  # name -> "making", or why it failed

    def name(self, first: Take, second: Take) -> str:
        return f"{first.number:04d}-{second.number:04d}"

    def path(self, first: Take, second: Take) -> Path:
        return self.folder / self.name(first, second) / "report.html"

    def state(self, first: Take, second: Take) -> str:
        """`done`, `making`, `none`, or why it failed."""
        if self.path(first, second).exists():
            return "done"
        return self.present.get(self.name(first, second), "none")

    def make(self, first: Take, second: Take) -> None:
        """Begin to make a report.

        Raises:
            UserError: one of the takes has no video yet, or is the other one.
        """
        for take in (first, second):
            if not take.is_finished:
                raise UserError(f"take {take.number} is {take.state}; a report needs two finished takes")
        if first is second:
            raise UserError("a report compares two takes; choose another one")
        with self.lock:
            if self.state(first, second) in ("done", "making"):
                return
            self.present[self.name(first, second)] = "making"
        threading.Thread(target=self._run, args=(first, second), daemon=True).start()

    def _run(self, first: Take, second: Take) -> None:
        out = self.path(first, second).parent
        videos = []
        for take in (first, second):
            videos.append(f"take{take.number}_{take.request.method}={take.file('video')}")
        words = ["nice", "-n", str(NICE), sys.executable, "-m", "evaluation", *videos]
        words += ["--out", str(out), "--embed", "--workers", "1"]
        try:
            run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, errors="replace")
            said = run.stderr.strip().splitlines() or ["it said nothing"]
            outcome = "none" if run.returncode == 0 else said[-1][:300]
        except OSError as error:
            outcome = f"the evaluation could not be started: {error.strerror}"
        with self.lock:
            self.present[self.name(first, second)] = outcome
        self.tell()
