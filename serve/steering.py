"""What people want of a take while it is made: pause, go on, stop, another prompt; and whose turn it is."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.timeline import Segment

GO, PAUSE, STOP, LEAVE = "go", "pause", "stop", "leave"


class SetAside(Exception):
    """The making ends between two blocks; what is there stays, and the take can be gone on with."""


class Turns:
    """Takes that are made side by side: a block each, in turn."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.order: list[object] = []

    @contextmanager
    def turn(self, who: object) -> Iterator[None]:
        """Wait for `who`'s turn; at the end it is the next one's."""
        with self.changed:
            if who not in self.order:
                self.order.append(who)
            self.changed.wait_for(lambda: self.order[0] is who)
        try:
            yield
        finally:
            with self.changed:
                if who in self.order:
                    self.order.remove(who)
                    self.order.append(who)
                self.changed.notify_all()

    def join(self, who: object) -> None:
        with self.changed:
            self.order.append(who)

    def leave(self, who: object) -> None:
        """Be passed over from now on."""
        with self.changed:
            if who in self.order:
                self.order.remove(who)
            self.changed.notify_all()


class Steering:
    """The wishes for one take in the making; set by pages, read by its maker between two blocks.

    Args:
        tell: called when a wish has been followed.
        must_leave: whether a paused take should make room for others.
    """

    def __init__(self, tell: Callable[[], None], must_leave: Callable[[], bool]) -> None:
        self.tell, self.must_leave = tell, must_leave
        self.changed = threading.Condition()
        self.wish = GO
        self.segment: tuple[str, str] | None = None  # prompt and rule of a switch that is wanted
        self.is_paused = False

    def ask(self, wish: str) -> None:
        with self.changed:
            if self.wish not in (STOP, LEAVE) or wish in (STOP, LEAVE):
                self.wish = wish
            self.changed.notify_all()

    def nudge(self) -> None:
        """Look again whether a paused take should make room."""
        with self.changed:
            self.changed.notify_all()

    def switch(self, prompt: str, how: str) -> None:
        """Go on under another prompt from the next block on."""
        with self.changed:
            self.segment = (prompt, how)

    def take_switch(self, start: int) -> Segment | None:
        """The switch that is wanted, for the block at latent frame `start`."""
        with self.changed:
            wanted, self.segment = self.segment, None
        if wanted is None:
            return None
        return Segment(start, *wanted)

    def wait(self, turns: Turns, who: object) -> float:
        """Between two blocks: pause as long as that is wanted.

        Returns:
            Seconds of pause.

        Raises:
            SetAside: the take is to be stopped, or its place is needed.
        """
        began = time.monotonic()
        with self.changed:
            if self.wish == PAUSE:
                self.is_paused = True
                turns.leave(who)
                self.tell()
                self.changed.wait_for(lambda: self.wish != PAUSE or self.must_leave())
                self.is_paused = False
                self.tell()
            if self.wish != GO:
                raise SetAside
        return time.monotonic() - began
