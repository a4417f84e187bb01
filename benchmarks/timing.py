"""Seconds of a rollout's blocks, and in another run of its stages."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch

from benchmarks.rollout import Rollout

TURN = 4  # blocks of a method before the next one's turn on a GPU; the first of them fills the queue and is not counted


class Marks:
    """Moments between a rollout's blocks: on a GPU those at which it comes to them, which nobody waits for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.moments: list = []

    def add(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.moments.append(event)
        else:
            self.moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each moment to the next, all of them waited for."""
        if self.device.type != "cuda":
            return [after - before for before, after in pairwise(self.moments)]
        self.moments[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self.moments)]


class Turns:
    """How several rollouts make progress in alternation.

    Attributes:
        length, counted: blocks of each turn, and how many of them count, the last ones.
        rounds: so many that at least the given number of blocks count.
    """

    def __init__(self, blocks: int, device: torch.device) -> None:
        self.device = device
        self.length = TURN if device.type == "cuda" else 1
        self.counted = max(self.length - 1, 1)
        self.rounds = -(-blocks // self.counted)

    @property
    def blocks(self) -> int:
        """That each rollout makes in all."""
        return self.rounds * self.length

    def take(self, rollouts: Mapping[str, Rollout]) -> dict[str, list[float]]:
        """Seconds of the blocks of each rollout that count."""
        seconds: dict[str, list[float]] = {name: [] for name in rollouts}
        for _ in range(self.rounds):
            for name, rollout in rollouts.items():
                marks = Marks(self.device)
                marks.add()
                for _ in range(self.length):
                    rollout.step()
                    marks.add()
                seconds[name] += marks.seconds()[-self.counted :]
        return seconds


class Stages:
    """Takes the seconds of a rollout's stages. Each is waited for, so that on a GPU nothing runs beside it.

    Attributes:
        blocks: seconds of each block.
        seconds, moved: of each stage in each block; bytes read and written.
    """

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.blocks: list[float] = []
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.moved: dict[str, list[int]] = defaultdict(list)
        cache, index = rollout.cache, rollout.index
        cache.begin = self._timed("assemble the context", cache.begin)
        cache.prefetch = self._timed("fetch", cache.prefetch)
        if index is not None:
            index.select = self._timed("select", index.select)
            index.add = self._timed("describe", index.add)

    def step(self) -> None:
        started = self._now()
        marks = {stage: len(times) for stage, times in self.seconds.items()}
        self.rollout.step()
        self.blocks.append(self._now() - started)
        for kind in (self.seconds, self.moved):  # calls of one block count together
            for stage, values in kind.items():
                values[marks.get(stage, 0) :] = [sum(values[marks.get(stage, 0) :])]

    def _timed(self, stage: str, function: Callable) -> Callable:
        def wrapped(*arguments, **keywords):
            started, moved = self._now(), self.rollout.bytes_moved()
            result = function(*arguments, **keywords)
            self.seconds[stage].append(self._now() - started)
            self.moved[stage].append(self.rollout.bytes_moved() - moved)
            return result

        return wrapped

    def _now(self) -> float:
        if self.rollout.device.type == "cuda":
            torch.cuda.synchronize(self.rollout.device)
        return time.perf_counter()

    def figures(self, count: int, machine: dict) -> dict:
        """Medians over the last `count` blocks, by stage; what no stage covers are forwards and noise."""
        rest = statistics.median(self.blocks[-count:])
        stages = {}
        for stage, times in self.seconds.items():
            seconds, moved = statistics.median(times[-count:]), statistics.median(self.moved[stage][-count:])
            stages[stage] = {"s": seconds}
            rest -= seconds
            if moved:
                of_rate = moved / seconds / 1e9 / machine["copy_gb_s"]
                stages[stage] |= {"moved_mb": moved / 1e6, "of_copy_rate": of_rate}
        tflop = self.rollout.flops / 1e12
        stages["forwards and noise"] = {
            "s": rest,
            "tflop": tflop,
            "of_matmul_rate": tflop / rest / machine["matmul_tflops"],
        }
        return stages
