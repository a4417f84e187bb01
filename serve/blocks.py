"""What a take's blocks attended to, as plain data: a line of JSON a block, beside the video."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.video.drift import drift
from evaluation.video.features import SCALARS, describe, shrink
from pipeline.context import ContextPlan
from pipeline.generation import LatentBlock
from utils.tensors import digest

PICTURES_A_BLOCK = 3  # whose colour and detail are measured


def describe_plan(plan: ContextPlan) -> list[list]:
    """The pieces of a plan in order: role, latent frame, temporal position, pool."""
    found = []
    for piece in plan.pieces():
        found.append([piece.role, piece.frame, piece.position, piece.pool])
    return found


def describe_block(block: LatentBlock, number: int, first: int, frames: np.ndarray) -> dict[str, Any]:
    """A finished block for a page.

    Args:
        number: of the block, counted from 0.
        first: pixel frame with which it begins.
        frames: its pictures [T, H, W, 3].
    """
    retrieved = []
    if block.selection is not None:
        pairs = zip(block.selection.frames[0], block.selection.similarities[0], strict=True)
        retrieved = [[frame, round(similarity, 4)] for frame, similarity in pairs]
    return {
        "block": number,
        "start": block.plan.start,
        "length": len(block.plan.own),
        "first": first,
        "frames": len(frames),
        "pieces": describe_plan(block.plan),
        "retrieved": retrieved,
        "tier_bytes": dict(block.tier_bytes),
        "copied_bytes": block.transfers.bytes,
        "dropped": list(block.transfers.dropped),
        "latents": digest(block.latents[0].float().cpu()),
        "look": _look(frames),
    }


def _look(frames: np.ndarray) -> list[float]:
    """Mean colour, contrast and detail of a block, of which its drift follows."""
    step = max(len(frames) // PICTURES_A_BLOCK, 1)
    found = [describe(shrink(frame))[: len(SCALARS)] for frame in frames[::step]]
    return [round(float(value), 4) for value in np.mean(found, axis=0)]


class BlockLog:
    """The file of one take's blocks; one that is made again counts in place of the earlier one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[int, dict[str, Any]] = {}
        self._read()

    def add(self, entry: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.found[entry["block"]] = entry

    def since(self, block: int) -> list[dict[str, Any]]:
        """The blocks from number `block` on, in order."""
        entries = dict(self.found)
        return [entries[number] for number in sorted(entries) if number >= block]

    def drift(self, fps: int) -> list[float]:
        """How far each block is from the first seconds; see `evaluation.video.drift`."""
        entries = self.since(0)
        if not entries:
            return []
        middles = [entry["first"] + entry["frames"] / 2 for entry in entries]
        looks = [entry["look"] for entry in entries]
        values = drift(np.array(middles) / fps, np.array(looks))
        return [round(float(value), 4) for value in values]

    def _read(self) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return
        for line in lines:
            try:
                entry = json.loads(line)
                self.found[entry["block"]] = entry
            except (ValueError, TypeError, KeyError):  # the line that a kill cut short
                continue
