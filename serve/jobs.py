"""The queue: one job at a time has the device, of one take, or of two that are made side by side."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve.making import Making
from serve.models import Models
from serve.steering import GO, LEAVE, PAUSE, STOP, SetAside, Steering, Turns
from serve.studio import Studio
from serve.takes import DONE, FAILED, MAKING, PAUSED, STOPPED, WAITING, Take
from utils.errors import UserError, explain
from utils.optional import best_effort

LEAVE_WITHIN = 60.0  # seconds that takes have to come to the end of a block when the server ends


@dataclass
class Present:
    """A take that has the device.

    Attributes:
        making: None until its settings are read.
    """

    steering: Steering
    making: Making | None = None


class Jobs:
    """Takes that wait, and those in the making.

    Args:
        tell: called with a take's number when it is not as it was.
        finished: called with the takes of a job at its end.
    """

    def __init__(self, studio: Studio, tell: Callable[[int], None], finished: Callable[[list[Take]], None]) -> None:
        self.studio, self.tell, self.finished = studio, tell, finished
        self.models = Models()
        self.changed = threading.Condition()
        self.queue: deque[list[Take]] = deque()
        self.present: dict[int, Present] = {}
        self.is_closed = False
        self.seconds = 0.0  # a block, of the last take that told
        self.thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to work; takes that waited or were made when the server ended come first."""
        left = [take for take in self.studio.takes.all() if take.state in (WAITING, MAKING)]
        joined: set[int] = set()
        for take in left:
            if take.number in joined:
                continue
            others = [other for other in left if other.number == take.request.pair or other.request.pair == take.number]
            joined |= {other.number for other in others}
            self._enqueue([take, *others])
        self.thread.start()

    def submit(self, takes: list[Take]) -> None:
        """Let takes wait for the device, together.

        Raises:
            UserError: too many wait.
        """
        self.require_room()
        self._enqueue(takes)

    def require_room(self) -> None:
        """
        Raises:
            UserError: too many takes wait.
        """
        if len(self.queue) >= self.studio.serve.waiting:
            raise UserError(f"{len(self.queue)} takes wait already, as many as may; come back when one is done")

    def _enqueue(self, takes: list[Take]) -> None:
        for take in takes:
            take.set_state(WAITING)
        with self.changed:
            self.queue.append(takes)
            self.changed.notify_all()
            present = list(self.present.values())
        for found in present:
            found.steering.nudge()
        self._tell_all()

    def pause(self, take: Take) -> None:
        """Wait between two blocks; a take that waits for the device leaves the queue."""
        if not self._withdraw(take, PAUSED):
            self._steering(take).ask(PAUSE)
        self.tell(take.number)

    def resume(self, take: Take) -> None:
        """Go on with a take that is paused, was stopped, or failed."""
        found = self.present.get(take.number)
        if found is not None:
            found.steering.ask(GO)
        elif take.state in (PAUSED, STOPPED, FAILED):
            self.submit([take])
        self.tell(take.number)

    def stop(self, take: Take) -> None:
        """End the making; what is there stays."""
        if take.state == PAUSED and take.number not in self.present:
            take.set_state(STOPPED)
            self.tell(take.number)
        elif not self._withdraw(take, STOPPED):
            self._steering(take).ask(STOP)
        self._tell_all()

    def _withdraw(self, take: Take, state: str) -> bool:
        """Take a take out of the queue; whether it was there."""
        with self.changed:
            jobs = [job for job in self.queue if take in job]
            for job in jobs:
                job.remove(take)
            self.queue = deque(job for job in self.queue if job)
        if jobs:
            take.set_state(state)
            self.tell(take.number)
        return bool(jobs)

    def switch(self, take: Take, prompt: str, how: str) -> None:
        """Another prompt from the next block on."""
        self._steering(take).switch(prompt, how)
        self.tell(take.number)

    def close(self) -> None:
        """End in order: takes stay as they are on disk, and the next server goes on with them."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()
        for found in list(self.present.values()):
            found.steering.ask(LEAVE)
        if self.thread.is_alive():
            self.thread.join(LEAVE_WITHIN)

    def status(self, take: Take) -> dict[str, Any]:
        """What is to be said of a take beside its files: its place, or how its making goes."""
        found = self.present.get(take.number)
        if found is None:
            return {"place": self._place(take), "wait": self._wait(take)}
        steering, making = found.steering, found.making
        status = {
            "paused": steering.is_paused,
            "wish": steering.wish,
            "switching": steering.segment is not None,
        }
        if making is None:
            return status
        left = max(take.frames // making.config.num_frame_per_block - making.number, 0)
        return status | {
            "making": making.number,
            "plan": making.plan,
            "seconds": round(making.seconds, 4),
            "left": round(left * making.seconds, 1) if making.seconds else None,
        }

    def _steering(self, take: Take) -> Steering:
        found = self.present.get(take.number)
        if found is None:
            raise UserError(f"take {take.number} is {take.state}, not in the making")
        return found.steering

    def _place(self, take: Take) -> int | None:
        """How many jobs come before a waiting take; None if it does not wait."""
        for place, job in enumerate(list(self.queue)):
            if take in job:
                return place + (1 if self.present else 0)
        return None

    def _wait(self, take: Take) -> float | None:
        """Seconds until a waiting take's turn, as far as can be told."""
        if self._place(take) is None or not self.seconds:
            return None
        blocks = 0
        for number, found in list(self.present.items()):
            if found.making is not None:
                whole = self.studio.takes.get(number).frames // found.making.config.num_frame_per_block
                blocks += whole - found.making.number
        for job in list(self.queue):
            if take in job:
                break
            blocks += sum(other.frames for other in job) // 3
        return round(blocks * self.seconds, 1)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue or self.is_closed)
                if self.is_closed:
                    return
                job = self.queue.popleft()
                for take in job:
                    self.present[take.number] = Present(self._new_steering(take))
            turns = Turns()
            threads = [threading.Thread(target=self._make, args=(take, turns), daemon=True) for take in job]
            for take in job:
                turns.join(take)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with best_effort("the report of two takes", "it can be asked for again"):
                self.finished(job)

    def _new_steering(self, take: Take) -> Steering:
        return Steering(lambda: self.tell(take.number), lambda: bool(self.queue) or self.is_closed)

    def _make(self, take: Take, turns: Turns) -> None:
        """One take, in a thread of its own, to its end, whatever that is."""
        steering = self.present[take.number].steering
        state, error = DONE, ""
        try:
            config = self.studio.config(take.request, take.folder, take.start)
            making = Making(take, config, self.models, steering, turns, lambda: self._heard(take))
            self.present[take.number].making = making
            take.set_state(MAKING)
            self._tell_all()
            making.run()
        except SetAside:
            state = {STOP: STOPPED, LEAVE: MAKING}.get(steering.wish, PAUSED)
        except Exception as problem:
            _, line = explain(problem)
            state, error = FAILED, line.removeprefix("error: ")
        turns.leave(take)
        self.present.pop(take.number, None)
        with best_effort("the note of how a take ended", "the next server looks at its files"):
            take.set_state(state, error)
        self.tell(take.number)
        self._tell_all()

    def _heard(self, take: Take) -> None:
        found = self.present.get(take.number)
        if found is not None and found.making is not None and found.making.seconds:
            self.seconds = found.making.seconds
        self.tell(take.number)

    def _tell_all(self) -> None:
        """Tell of all takes whose place in the queue may have changed."""
        for take in self.studio.takes.all():
            if take.state in (WAITING, MAKING):
                self.tell(take.number)
