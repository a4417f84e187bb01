"""A second thread that works in order and never falls far behind the main one."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """One thread that calls `start`, then does what it is given in order; the giver waits when `depth` pieces wait.

    With a depth of 0 the giver does each piece itself, at once.

    Used as a context manager: leaving it waits for the rest, and an error in a piece is raised at
    the next `do` or on leaving. What comes after a piece that failed is not done.
    """

    def __init__(self, start: Callable[[], None] | None = None, depth: int = 2) -> None:
        self.depth = depth
        self.failed = False
        self.pool = ThreadPoolExecutor(1, initializer=start)
        self.pending: deque[Future] = deque()

    def do(self, work: Callable[..., None], *arguments: Any) -> None:
        if self.depth == 0:
            work(*arguments)
            return
        while len(self.pending) >= self.depth:
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(self._run, work, arguments))

    def _run(self, work: Callable[..., None], arguments: tuple) -> None:
        if self.failed:
            return
        try:
            work(*arguments)
        except BaseException:
            self.failed = True
            raise

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            while self.pending and kind is None:
                self.pending.popleft().result()
        finally:
            self.pool.shutdown(wait=True, cancel_futures=True)
