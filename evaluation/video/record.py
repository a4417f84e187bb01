"""What a run wrote beside its video: the prompt, its number, and which frames were retrieved."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STRIP_BLOCKS = 6  # the most rows of a strip of retrieved frames
STRIP_FRAMES = 6  # the most frames in a row


@dataclass(frozen=True)
class Row:
    """One block: the frame it starts at, and the frames it retrieved with their similarities, best first."""

    query: int
    retrieved: tuple[int, ...]
    similarities: tuple[float, ...]


@dataclass(frozen=True)
class Record:
    """The part of a run's JSON that a report needs; a video without one has an empty record.

    Attributes:
        number: prompt index and sample.
        rows: a few blocks, evenly spread over those that retrieved something, in pixel frame numbers.
        fault: what is wrong with the file, in words that follow its name.
    """

    prompt: str | None = None
    number: tuple[int, int] | None = None
    rows: tuple[Row, ...] = ()
    fault: str | None = None

    @property
    def frames(self) -> set[int]:
        """Numbers of all frames that the rows show."""
        shown = set()
        for row in self.rows:
            shown.add(row.query)
            shown.update(row.retrieved)
        return shown


def record_path(video: Path) -> Path:
    """Where the record of a video lies."""
    return video.with_suffix(".json")


def read_record(video: Path) -> Record:
    """The record of a video. A damaged one keeps what can be read of it and says what is wrong."""
    try:
        content = json.loads(record_path(video).read_bytes())
    except FileNotFoundError:
        return Record()
    except OSError as error:
        return Record(fault=f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError):
        return Record(fault="is damaged: it is not valid JSON")
    if not isinstance(content, dict):
        return Record(fault="is damaged: it is not a JSON object")
    return parse_record(content)


def parse_record(content: dict[str, Any]) -> Record:
    """A run's JSON as a record; what it has no keys for stays empty."""
    prompt = content.get("prompt")
    if not isinstance(prompt, str):
        prompt = None
    number = None
    fault = None
    if "prompt_index" in content and "sample" in content:
        number = (content["prompt_index"], content["sample"])
        if not all(map(_is_count, number)):
            number = None
            fault = "is damaged: prompt_index and sample are not numbers from 0"
    rows: tuple[Row, ...] = ()
    if {"blocks", "frames", "config"} <= content.keys():
        try:
            rows = _rows(content)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
            fault = "is damaged: it does not say which frames were retrieved"
    return Record(prompt, number, rows, fault)


def _is_count(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _rows(content: dict[str, Any]) -> tuple[Row, ...]:
    blocks = []
    for block in content["blocks"]:
        if block["retrieved"]:
            blocks.append(block)
    latents = content["config"]["num_output_frames"]
    if not blocks or latents < 2:
        return ()
    stride = (content["frames"] - 1) / (latents - 1)  # pixel frames of a latent frame after the first
    rows = []
    for block in _spread(blocks, STRIP_BLOCKS):
        rows.append(_row(block, stride, content["frames"]))
    return tuple(rows)


def _row(block: dict[str, Any], stride: float, frames: int) -> Row:
    pairs = list(zip(block["similarities"], block["retrieved"], strict=True))
    pairs.sort(key=lambda pair: -pair[0])
    retrieved = []
    similarities = []
    for similarity, latent in pairs[:STRIP_FRAMES]:
        retrieved.append(_middle(latent, stride, frames))
        similarities.append(float(similarity))
    return Row(_middle(block["start"], stride, frames), tuple(retrieved), tuple(similarities))


def _middle(latent: int, stride: float, frames: int) -> int:
    """Pixel frame in the middle of those that latent frame `latent` stands for."""
    frame = round(latent * stride - (stride - 1) / 2)
    return min(frames - 1, max(0, frame))


def _spread(blocks: Sequence[dict], most: int) -> Sequence[dict]:
    if len(blocks) <= most:
        return blocks
    chosen = []
    for i in range(most):
        chosen.append(blocks[round(i * (len(blocks) - 1) / (most - 1))])
    return chosen
