"""Prompts by time, `a harbour[5s] | a market[10s#] | a forest`, and times as people write them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.prompts import Prompt
from pipeline.scenes import SWITCHES
from utils.errors import UserError
from utils.settings import require_choice

TIME = re.compile(r"(\d+(?:\.\d+)?)(s|f|b)")
UNITS = "a number with s for seconds, f for latent frames or b for blocks, such as 12s, 48f or 16b"
PART = re.compile(r"(?P<text>.*?)\[\s*(?P<time>[^\[\]#]*?)\s*(?P<cut>#?)\s*\]\s*", re.DOTALL)
LENGTHS = {"seconds": "s", "frames": "f", "blocks": "b"}  # keys of `segments`


class Segment(NamedTuple):
    """A prompt and from where on it holds.

    Attributes:
        start: first latent frame, where a block begins.
        how: what happens there, a name in `pipeline.scenes.SWITCHES`; None where the video begins.
    """

    start: int
    prompt: str
    how: str | None = None


@dataclass(frozen=True)
class Grid:
    """Where a video's blocks begin.

    Attributes:
        frames: its length in latent frames.
        block: latent frames of a block.
        first: those of the first block.
        rate: latent frames a second.
    """

    frames: int
    block: int
    first: int
    rate: float

    def ceil(self, frame: float) -> int:
        """The first block's start at or after a latent frame."""
        if frame <= 0:
            return 0
        beyond = max(frame - self.first, 0)
        return self.first + math.ceil(beyond / self.block - 1e-9) * self.block

    def floor(self, frame: int) -> int:
        """The last block's start at or before a latent frame."""
        if frame < self.first:
            return 0
        return self.first + (frame - self.first) // self.block * self.block

    def length(self, time: str, what: str) -> float:
        """A time as people write it, in latent frames.

        Raises:
            UserError: it is no time; `what` names it.
        """
        found = TIME.fullmatch(time.strip())
        if found is None:
            raise UserError(f"{what} '{time}' is no time; write {UNITS}")
        number, unit = float(found[1]), found[2]
        if unit == "s":
            return number * self.rate
        return number * self.block if unit == "b" else number

    def start_at(self, time: str, what: str) -> int:
        """The latent frame of the first block that begins at or after a time.

        Raises:
            UserError: it is no time, or lies at or beyond the end.
        """
        start = self.ceil(self.length(time, what))
        if start >= self.frames:
            raise UserError(f"{what} {time} is not before the end of the video, {self.frames} latent frames")
        return start

    def starts_at(self, times: str, what: str) -> list[int]:
        """The same of several times with commas between them."""
        return [self.start_at(time, what) for time in times.split(",") if time.strip()]

    def seconds(self, frame: int) -> float:
        return frame / self.rate


def segments_of(prompt: Prompt, grid: Grid, how: str, given: Sequence[Any] = (), indices: str = "") -> list[Segment]:
    """The segments of a prompt, at least one.

    They come from its text, from `given`, or from the fields `prompts` and `switch_frame_indices` of its line.

    Args:
        how: what happens where the prompt changes; a `#` in a text makes the end of its segment a hard cut.
        given: the setting `segments`.
        indices: the setting `switch_frame_indices`.

    Raises:
        UserError: no such form, a segment shorter than a block, or one that begins beyond the video's end.
    """
    listed = prompt.fields.get("prompts", prompt.fields.get("prompts_list"))
    if given:
        return _placed(_from_setting(given, how), grid)
    if listed:
        indices = prompt.fields.get("switch_frame_indices", indices)
        return _from_list(listed, indices, grid, how, f"prompt {prompt.index}")
    return _placed(_from_text(prompt.text, how), grid)


def is_timeline(text: str) -> bool:
    """Whether a prompt names lengths of its parts."""
    return any(PART.fullmatch(part) and TIME.search(part) for part in text.split("|"))


class _Part(NamedTuple):
    prompt: str
    length: str | None  # None: to the end
    how: str  # what happens at its start


def _from_text(text: str, how: str) -> list[_Part]:
    if not is_timeline(text):
        return [_Part(text, None, how)]
    parts = []
    at_start = how
    texts = text.split("|")
    for number, part in enumerate(texts, start=1):
        found = PART.fullmatch(part)
        is_last = number == len(texts)
        if found is None and not is_last:
            raise UserError(f"part {number} of the prompt, '{part.strip()}', says no length; write {part.strip()}[5s]")
        words = found["text"] if found else part
        if not words.strip():
            raise UserError(f"part {number} of the prompt is empty; write words before [5s]")
        parts.append(_Part(words.strip(), found["time"] if found else None, at_start))
        at_start = "cut" if found and found["cut"] else how
    return parts


def _from_setting(given: Sequence[Any], how: str) -> list[_Part]:
    parts = []
    for number, entry in enumerate(given, start=1):
        what = f"segments: entry {number}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
            raise UserError(f"{what} is {entry}; write {{prompt: a harbour, seconds: 5}}")
        unknown = entry.keys() - {"prompt", "how", *LENGTHS}
        if unknown:
            raise UserError(f"{what} has {', '.join(sorted(unknown))}; it may have prompt, how, {', '.join(LENGTHS)}")
        rule = entry.get("how", how)
        require_choice(f"{what}: how", rule, SWITCHES)
        lengths = [f"{entry[key]}{unit}" for key, unit in LENGTHS.items() if key in entry]
        if len(lengths) > 1 or (not lengths and number < len(given)):
            raise UserError(f"{what} has {len(lengths)} lengths; give one of {', '.join(LENGTHS)}")
        parts.append(_Part(entry["prompt"].strip(), lengths[0] if lengths else None, rule))
    return parts


def _placed(parts: Sequence[_Part], grid: Grid) -> list[Segment]:
    """Parts one after another, each from the first block that begins at or after the end of the one before."""
    segments: list[Segment] = []
    end = 0.0  # of the parts so far, in latent frames
    for part in parts:
        start = grid.ceil(end)
        if start >= grid.frames:
            seconds = grid.seconds(grid.frames)
            raise UserError(
                f"the prompt '{part.prompt}' would begin at latent frame {start} of a video of {grid.frames} "
                f"({seconds:g} s); shorten what is before it or raise num_output_frames"
            )
        _append(segments, Segment(start, part.prompt, part.how if segments else None))
        if part.length is not None:
            end += grid.length(part.length, f"the length of '{part.prompt}',")
    return segments


def _from_list(prompts: Any, indices: Any, grid: Grid, how: str, what: str) -> list[Segment]:
    """LongLive's form: a list of prompts, and the latent frames at which each but the first begins."""
    if not isinstance(prompts, list) or not all(isinstance(text, str) and text.strip() for text in prompts):
        raise UserError(f"{what}: prompts is {prompts}; write a list of texts")
    if isinstance(indices, str):
        indices = [word for word in re.split(r"[,\s]+", indices.strip()) if word]
    if not isinstance(indices, list) or not all(str(index).isdigit() for index in indices):
        raise UserError(f"{what}: switch_frame_indices is {indices}; write latent frames such as 40,80")
    if len(indices) < len(prompts) - 1:
        raise UserError(
            f"{what} has {len(prompts)} prompts and {len(indices)} switch_frame_indices; {len(prompts) - 1} are needed"
        )
    segments = [Segment(0, prompts[0].strip())]
    for text, index in zip(prompts[1:], indices, strict=False):  # more indices than prompts: published configs have
        start = grid.ceil(int(index))
        if start >= grid.frames:
            raise UserError(f"{what}: switch_frame_indices {index} is not before the video's end, {grid.frames}")
        _append(segments, Segment(start, text.strip(), how))
    return segments


def _append(segments: list[Segment], segment: Segment) -> None:
    if segments and segment.start <= segments[-1].start:
        raise UserError(
            f"the prompts '{segments[-1].prompt}' and '{segment.prompt}' begin at one block, latent frame "
            f"{segment.start}; give the first at least a block"
        )
    segments.append(segment)
