"""Takes on disk: a folder each, with a run's ordinary files and what was asked for.

    0007/take.json             the request, its state, and where the prompt was switched
    0007/00000-0.mp4 .json     the video and its record, as inference.sh writes them
    0007/.preview/             pictures for the page
    0007/.blocks.jsonl         what each block attended to

A folder's name is a number that the server gave; no name from outside becomes a path.
"""

import json
import re
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.timeline import Segment
from serve.blocks import BlockLog
from serve.preview import Preview
from serve.request import Request
from utils.errors import UserError
from utils.files import write_json

NAME = "00000-0"  # of a take's files: the first sample of the first prompt
FOLDER = re.compile(r"\d{4,9}")
WAITING, MAKING, PAUSED, STOPPED, DONE, FAILED = "waiting", "making", "paused", "stopped", "done", "failed"
STATES = (WAITING, MAKING, PAUSED, STOPPED, DONE, FAILED)
LAST = ".last.json"  # the last number that was given
DELETED = ".deleted-"
FILES = {  # what can be fetched -> end of its name
    "video": ".mp4",
    "record": ".json",
    "latents": ".latents.npy",
    "plot": ".memory.png",
}


@dataclass
class Take:
    """One take.

    Attributes:
        number: names its folder.
        state: one of `STATES`.
        scenes: prompts that were switched to while it was made, with the blocks' first latent frames.
        segments: all its prompts; known when its making has begun.
        error: why it failed, for a person.
        created: seconds since 1970.
        frames: length in latent frames.
        fps: pixel frames a second.
    """

    number: int
    folder: Path
    request: Request
    state: str = WAITING
    scenes: list[Segment] = field(default_factory=list)
    error: str = ""
    created: float = 0.0
    frames: int = 0
    fps: int = 16
    title: str = ""
    segments: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.segments = self.segments or [Segment(0, self.request.prompt)]
        self.blocks = BlockLog(self.folder / ".blocks.jsonl")
        self.preview = Preview(self.folder / ".preview")

    def file(self, kind: str) -> Path:
        """The path of one of `FILES`, there or not."""
        return self.folder / f"{NAME}{FILES[kind]}"

    @property
    def is_finished(self) -> bool:
        return self.file("video").exists()

    @property
    def start(self) -> Path | None:
        """Its copy of the picture or clip that it begins with."""
        if self.request.start is None:
            return None
        return self.folder / f"start{Path(self.request.start).suffix}"

    def save(self) -> None:
        """Write take.json: all that brings the take back after a kill."""
        content = {
            "request": self.request.to_json(),
            "state": self.state,
            "scenes": [segment._asdict() for segment in self.scenes],
            "segments": [segment._asdict() for segment in self.segments],
            "error": self.error,
            "created": self.created,
            "frames": self.frames,
            "fps": self.fps,
            "title": self.title,
        }
        with self.lock:
            write_json(self.folder / "take.json", content)

    def set_state(self, state: str, error: str = "") -> None:
        assert state in STATES, state
        self.state, self.error = state, error
        self.save()


class Takes:
    """All takes in a folder.

    Args:
        folder: theirs; it is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.found: dict[int, Take] = {}
        self.last = _read_number(folder / LAST)  # no number is given twice
        for path in sorted(folder.iterdir()):
            if path.name.startswith(DELETED):
                shutil.rmtree(path, ignore_errors=True)
            if FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                take = read_take(path)
                if take is not None:
                    self.found[take.number] = take

    def get(self, number: int) -> Take:
        """
        Raises:
            UserError: there is none of this number.
        """
        take = self.found.get(number)
        if take is None:
            raise UserError(f"there is no take {number}")
        return take

    def all(self) -> list[Take]:
        return [self.found[number] for number in sorted(self.found)]

    def add(self, request: Request, frames: int, fps: int, start: Path | None = None) -> Take:
        """A new take, in a folder of its own.

        Args:
            start: picture or clip that it begins with; the take keeps a copy.
        """
        with self.lock:
            number = max(self.last, *self.found, 0) + 1
            while (folder := self.folder / f"{number:04d}").exists():
                number += 1
            write_json(self.folder / LAST, number)
            self.last = number
            folder.mkdir()
            if start is not None:
                shutil.copyfile(start, folder / f"start{start.suffix}")
            take = Take(number, folder, request, created=time.time(), frames=frames, fps=fps, title=request.title)
            take.save()
            self.found[number] = take
        return take

    def delete(self, number: int) -> None:
        """Take it and its files away.

        Raises:
            UserError: it is in the making, or a fork of it is not finished.
        """
        take = self.get(number)
        if take.state in (WAITING, MAKING):
            raise UserError(f"take {number} is {take.state}; stop it first")
        for other in self.all():
            if other.request.parent == number and not other.is_finished and other.state != FAILED:
                raise UserError(f"take {other.number} is made from take {number} and is not finished")
        with self.lock:
            self.found.pop(number, None)
        # Renamed first: what a kill leaves of it is no take any more.
        hidden = self.folder / f"{DELETED}{take.folder.name}"
        shutil.rmtree(hidden, ignore_errors=True)
        take.folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def read_take(folder: Path) -> Take | None:
    """The take in a folder; None where take.json cannot be read."""
    try:
        content: dict[str, Any] = json.loads((folder / "take.json").read_text(encoding="utf-8"))
        scenes = [Segment(**segment) for segment in content["scenes"]]
        segments = [Segment(**segment) for segment in content["segments"]]
        take = Take(
            number=int(folder.name),
            folder=folder,
            request=Request(**content["request"]),
            state=content["state"],
            scenes=scenes,
            error=str(content["error"]),
            created=float(content["created"]),
            frames=int(content["frames"]),
            fps=int(content["fps"]),
            title=str(content["title"]),
            segments=segments,
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if take.state not in STATES:
        return None
    if take.is_finished and take.state != DONE:  # killed between the video and the note of it
        take.set_state(DONE)
    return take
