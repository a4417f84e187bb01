"""What there is of a video that is not finished yet, so that a killed run goes on inside it.

A hidden folder `.NAME.mp4/` beside the video's place holds its latents, which grow block by block, and the
segments of it that are decoded and encoded. It is gone when the video is finished.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.decode import State
from pipeline.latents import LatentFile, open_latents
from pipeline.state import STATE, GenerationState
from utils.claim import Claim
from utils.errors import UserError
from utils.files import atomic, require_writable, write_json
from utils.provenance import require_same
from utils.temporary import sweep
from utils.tensors import digest, save_tensors

REMEDY = "name another output_folder=, start anew with skip_existing=false, or delete it"


def segment_ends(blocks: int, size: int, begun: Sequence[int] = ()) -> list[int]:
    """The number of blocks of a video that are made when each of its segments ends.

    Args:
        blocks: of the whole video.
        size: blocks of a segment.
        begun: the same of the segments that are there.
    """
    ends = list(begun)
    while not ends or ends[-1] < blocks:
        ends.append(min(ends[-1] + size if ends else size, blocks))
    return ends


def discard_left(videos: Iterable[Path], held: Claim) -> None:
    """Take away the folders of finished videos, which a run left that was killed at its very end."""
    for video in videos:
        folder = folder_of(video)
        if folder.exists() and held.take(video.name):  # or it is being made anew
            shutil.rmtree(folder, ignore_errors=True)
            held.give_back(video.name)


def folder_of(video: Path) -> Path:
    """Where a video is while it is made."""
    return video.with_name(f".{video.name}")


class Unfinished:
    """The folder of one video in the making.

    Args:
        path: where the finished video will be.
        made_of: what it is made of, as plain values.
    """

    def __init__(self, path: Path, made_of: Mapping[str, Any]) -> None:
        self.folder = folder_of(path)
        self.made_of = json.loads(json.dumps(made_of))
        self.latents_path = self.folder / "latents.npy"
        self.latents: LatentFile | None = None

    def check(self, start_anew: bool) -> None:
        """Refuse a folder with whole segments that a run of other settings left; take it away where it holds less.

        Args:
            start_anew: take it away in any case.

        Raises:
            UserError: names what differs.
        """
        if not self.folder.is_dir():
            return
        sweep(self.folder)
        left = self._read("made_of.json")
        if left is None:  # killed before it said what it would be
            self.discard()
            return
        try:
            require_same(self.folder, left, self.made_of, REMEDY)
        except UserError:
            if self.segments and not start_anew:
                raise
            self.discard()

    def begin(self, shape: tuple[int, int, int, int], past: "Unfinished | None" = None) -> None:
        """Make the folder ready for latents of `shape` [F, C, H, W].

        Args:
            past: another video, of whose latents and segments it is to have at least those that are there.
        """
        if self.folder.is_symlink():
            raise UserError(f"{self.folder} is a link, which may lead anywhere; delete it")
        require_writable(self.folder)
        if self._read("made_of.json") is None:
            write_json(self.folder / "made_of.json", self.made_of)
        if past is not None:
            self._take_over(past)
        self.latents = LatentFile(self.latents_path, shape)

    def _take_over(self, past: "Unfinished") -> None:
        if self.frames < past.frames:
            self._copy(past, past.latents_path.name)
        count = past.segments
        if self.segments < count:
            self._copy(past, past._state(count - 1).name)
            for number in range(count):
                self._copy(past, past.segment(number).name)
                self._copy(past, f"{number:04d}.json")

    def _copy(self, other: "Unfinished", name: str) -> None:
        with atomic(self.folder / name) as temporary:
            shutil.copyfile(other.folder / name, temporary)

    @property
    def ends(self) -> list[int]:
        """The number of blocks that were made when each whole segment ended."""
        found = []
        for number in range(1, self.segments + 1):
            _, blocks = self.said(number)
            found.append(len(blocks))
        return found

    @property
    def frames(self) -> int:
        """Latent frames that are there."""
        try:
            return len(open_latents(self.latents_path))
        except UserError:
            return 0

    @property
    def segments(self) -> int:
        """Segments that are whole."""
        number = 0
        while self._read(f"{number:04d}.json") is not None and self.segment(number).exists():
            number += 1
        return number

    def segment(self, number: int) -> Path:
        """The video of a segment."""
        return self.folder / f"{number:04d}.mp4"

    def write(self, start: int, latents: torch.Tensor) -> None:
        """Keep a block's latents [f, C, H, W] from frame `start` on."""
        self.latents.write(start, latents)

    def keep(self, state: GenerationState, about: Callable[[], dict[str, Any]]) -> None:
        """Keep what a generation holds after the latents that are there now.

        Args:
            about: says what it depends on beside them.
        """
        start = state.values["start"]
        path = self.folder / f"{start}{STATE}"
        if not path.exists():
            latents = open_latents(self.latents_path)[:start]
            state.save(path, about() | {"latents": digest(latents)})

    @property
    def states(self) -> list[Path]:
        """The files of what was kept."""
        return sorted(self.folder.glob(f"[0-9]*{STATE}"))

    def end_segment(self, number: int, blocks: Sequence[dict], frames: int, state: State | None) -> None:
        """A segment's video is written: keep what was said of its blocks, and the decoder's state after it.

        Args:
            frames: pixel frames of the segment.
            state: None after the last segment.
        """
        if state is not None:
            save_tensors(self._state(number), dict(state))
        write_json(self.folder / f"{number:04d}.json", {"frames": frames, "blocks": list(blocks)})
        self._state(number - 2).unlink(missing_ok=True)  # a batch's other samples may be one segment behind

    def said(self, segments: int) -> tuple[int, list[dict]]:
        """Pixel frames and the records of the blocks of the first segments."""
        frames = 0
        blocks = []
        for number in range(segments):
            content = self._read(f"{number:04d}.json")
            frames += content["frames"]
            blocks += content["blocks"]
        return frames, blocks

    def state(self, segments: int) -> State | None:
        """The decoder's state after so many segments; None where it is not there or cannot be read."""
        try:
            return torch.load(self._state(segments - 1), weights_only=True)
        except Exception:  # of many kinds; the video is then decoded from its start
            return None

    def discard(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _state(self, number: int) -> Path:
        return self.folder / f"{number:04d}.decoder.pt"

    def _read(self, name: str) -> dict | None:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None
