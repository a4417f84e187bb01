"""Progress of a run: bars on a terminal, plain lines elsewhere; one process prints."""

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm


class Progress:
    """Counts videos and blocks, and says how fast it goes.

    Args:
        videos: how many will be made.
        blocks: blocks of one video.
        frames_per_block: pixel frames of a block, for the rate.
        quiet: print nothing (every process but the first).
    """

    def __init__(self, videos: int, blocks: int, frames_per_block: int, quiet: bool = False) -> None:
        self.videos = videos
        self.blocks = blocks
        self.frames_per_block = frames_per_block
        self.quiet = quiet
        self.bars = sys.stderr.isatty() and not quiet
        self.made = 0
        self.warned = False
        self.outer = tqdm(total=videos, desc="videos", unit="video", disable=not self.bars, position=0)
        self.inner: tqdm | None = None

    def begin(self, name: str, at_once: int) -> None:
        """A batch of `at_once` videos starts; `name` is its first file."""
        self.name = name
        self.at_once = at_once
        self.started = time.monotonic()
        self.spoken = 0.0  # seconds after the start
        self.block = 0
        self.dropped = 0
        self.inner = tqdm(total=self.blocks, desc=name, unit="block", disable=not self.bars, position=1, leave=False)

    def step(self, memory_bytes: int, retrieved: Sequence[int], dropped: Sequence[int] = ()) -> None:
        """One more block is finished and written; `dropped` are the frames that a bounded memory forgot for it."""
        self.block += 1
        self.dropped += len(dropped)
        if dropped and not self.warned:
            self.warned = True
            self.say(
                f"{self.name}: the memory is full (bank.capacity); it forgets frames from now on, {dropped[0]} first"
            )
        elapsed = max(time.monotonic() - self.started, 1e-6)  # a coarse clock may stand still
        rate = self.block * self.frames_per_block * self.at_once / elapsed
        status = f"{rate:.1f} frames/s, memory {memory_bytes / 1e6:.0f} MB"
        if retrieved:
            status += ", retrieved " + " ".join(map(str, retrieved))
        if self.bars:
            self.inner.set_postfix_str(status, refresh=False)
            self.inner.update()
        elif not self.quiet and (elapsed - self.spoken >= 10 or self.block == self.blocks):
            self.spoken = elapsed
            left = elapsed / self.block * (self.blocks - self.block)
            print(f"{self.name}: block {self.block}/{self.blocks}, {status}, {left:.0f} s left", flush=True)

    def end(self) -> None:
        """The batch's files are written."""
        self.inner.close()
        if self.dropped:
            self.say(f"{self.name}: the memory forgot {self.dropped} frames")
        self.made += self.at_once
        self.outer.update(self.at_once)

    def say(self, line: str) -> None:
        """Print a line without breaking the bars."""
        if not self.quiet:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        self.outer.close()
