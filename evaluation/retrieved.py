"""What a run retrieved, as frames of its video."""

from collections.abc import Sequence
from dataclasses import dataclass

STRIP_BLOCKS, STRIP_FRAMES = 6, 6  # the most rows of a strip, and frames in a row


@dataclass(frozen=True)
class Row:
    """One block: the frame it starts at, and the frames it retrieved with their similarities, best first."""

    query: int
    retrieved: tuple[int, ...]
    similarities: tuple[float, ...]


def rows(record: dict) -> list[Row]:
    """A few blocks, evenly spread over those that retrieved something, in pixel frame numbers.

    Args:
        record: a run's JSON; anything else gives no rows.
    """
    try:
        latents = record["config"]["num_output_frames"]
        stride = (record["frames"] - 1) / (latents - 1)  # pixel frames of a latent frame after the first
        blocks = [block for block in record["blocks"] if block["retrieved"]]
        return [_row(block, stride, record["frames"]) for block in _spread(blocks, STRIP_BLOCKS)]
    except (KeyError, TypeError, ZeroDivisionError):
        return []


def _row(block: dict, stride: float, frames: int) -> Row:
    pairs = sorted(zip(block["retrieved"], block["similarities"], strict=True), key=lambda pair: -pair[1])
    pairs = pairs[:STRIP_FRAMES]
    to_pixel = [_middle(frame, stride, frames) for frame, _ in pairs]
    return Row(_middle(block["start"], stride, frames), tuple(to_pixel), tuple(s for _, s in pairs))


def _middle(latent: int, stride: float, frames: int) -> int:
    """Pixel frame in the middle of those that latent frame `latent` stands for."""
    return min(frames - 1, max(0, round(latent * stride - (stride - 1) / 2)))


def _spread(blocks: Sequence[dict], most: int) -> list[dict]:
    if len(blocks) <= most:
        return list(blocks)
    return [blocks[round(i * (len(blocks) - 1) / (most - 1))] for i in range(most)]
