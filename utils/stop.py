"""Stops from outside: Ctrl-C, SIGTERM or SIGHUP ends a run in order, at once or when a file is whole."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 1.0  # seconds after which a second signal means "now": closing a terminal sends several at once


class Stopped(KeyboardInterrupt):
    """The run is to end: what is half made is discarded, what is whole stays."""


class Stop:
    """Whether this process is asked to stop, and what it can say of its work.

    A signal raises `Stopped` in the main thread. Within `held()` it waits for the end of that block; a loop that
    prefers to stop between two pieces of work holds them and calls `check()` in between.

    Attributes:
        tell: gives words such as "2 of 8 videos are finished"; set by the loop that knows.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.since = 0.0
        self.holds = 0
        self.tell: Callable[[], str] | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None

    @property
    def status(self) -> int:
        """Exit status of a stopped process, as a shell knows it."""
        return 130 if self.signal in (None, signal.SIGINT) else 143

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked while it could not be."""
        if self.asked and not self.holds:
            raise Stopped

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let this block of code come to its end before a stop."""
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1
        self.check()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the signals within this block; one that is ignored, as under `nohup`, stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, self._receive)
        try:
            yield
        finally:
            if not self.asked:  # a run that is stopped listens to its end: the same signal may come twice
                sys.unraisablehook = hook
                for number, handler in before.items():
                    signal.signal(number, handler)

    def line(self) -> str:
        """What to say at the end of a stopped run."""
        done = "stopped"
        if self.tell is not None:
            done = f"stopped: {self.tell()}"
        name = signal.SIGINT.name if self.signal is None else self.signal.name
        return f"{done}, the same command goes on (interrupted by {name})"

    def _receive(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked:
            if now - self.since > PATIENCE:
                os._exit(self.status)
            return
        self.signal, self.since = signal.Signals(number), now
        if not self.holds:
            raise Stopped

    def _unraisable(self, lost: Any) -> None:
        """Hear of an error that Python cannot raise, of a `__del__` say; those of a run that ends are nobody's news."""
        if not self.asked:
            sys.__unraisablehook__(lost)
        elif isinstance(lost.exc_value, Stopped):  # the stop itself was lost: once more, a moment later
            number, self.signal = self.signal, None
            threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, number]).start()


stop = Stop()  # a process has one
